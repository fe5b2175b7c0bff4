"""The protocol between a trainer and its supervisor, both ends.

An event is a line of JSON on a private stdout.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

from harness.artifacts import Metrics
from harness.errors import HarnessError
from harness.run.watcher import Watcher

# The longest text of a library that is passed on.
_MOST_CHARACTERS = 500


class Event(enum.StrEnum):
    SAY = "say"
    WARN = "warn"
    PHASE = "phase"
    STEP = "step"
    PEERS = "peers"
    ERROR = "error"
    EXHAUSTED = "exhausted"
    HOST_MEMORY = "host-memory"
    END = "end"


class Channel:
    """The trainer's end of the protocol; a `Watcher`.

    `error`, `exhausted`, `host_memory` or `end` is the last event.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        self._tell(Event.SAY, text=text)

    def warn(self, text: str) -> None:
        self._tell(Event.WARN, text=text)

    def phase(self, name: str) -> None:
        self._tell(Event.PHASE, name=name)

    def step(self, line: Metrics, steps: int) -> None:
        self._tell(Event.STEP, line=line.model_dump(mode="json"), steps=steps)

    def peers(self, hosts: list[str]) -> None:
        """Reports the hosts of all processes of the run, in the order of their numbers."""
        self._tell(Event.PEERS, hosts=hosts)

    def error(self, error: HarnessError) -> None:
        self._tell(
            Event.ERROR, code=error.code, what=error.what, got=error.got, need=error.need, fix=error.fix
        )

    def exhausted(self, text: str) -> None:
        """Reports that the device has no memory left."""
        self._tell(Event.EXHAUSTED, text=text[:_MOST_CHARACTERS])

    def host_memory(self, text: str) -> None:
        """Reports that the host has no memory left."""
        self._tell(Event.HOST_MEMORY, text=text[:_MOST_CHARACTERS])

    def end(self, step: int, *, finished: bool) -> None:
        self._tell(Event.END, step=step, finished=finished)

    def _tell(self, event: Event, **body: Any) -> None:
        self._out.write(json.dumps({"event": event} | body) + "\n")
        self._out.flush()


class End(NamedTuple):
    """The last event of a trainer. `step` is the last step that was saved."""

    step: int
    finished: bool


@dataclass
class Heard:
    """The supervisor's end of the protocol: the events of a trainer so far."""

    phase: str = "start"
    error: HarnessError | None = None
    exhausted: str | None = None
    host_memory: str | None = None
    end: End | None = None
    steps: list[Metrics] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    def take(self, line: bytes, watcher: Watcher) -> None:
        """Records the event of one line of JSON, and passes it on if it is one of a watcher's.

        An event of an unknown name comes from another version and is ignored.
        """
        event = json.loads(line)
        kind = event.pop("event")
        if kind == Event.SAY:
            watcher.say(event["text"])
        elif kind == Event.WARN:
            watcher.warn(event["text"])
        elif kind == Event.PHASE:
            self.phase = event["name"]
            watcher.phase(self.phase)
        elif kind == Event.STEP:
            metrics = Metrics.model_validate(event["line"])
            self.steps.append(metrics)
            watcher.step(metrics, event["steps"])
        elif kind == Event.PEERS:
            self.hosts = [str(host) for host in event["hosts"]]
        elif kind == Event.ERROR:
            self.error = HarnessError(
                str(event["code"]),
                str(event["what"]),
                got=event["got"],
                need=event["need"],
                fix=str(event["fix"]),
            )
        elif kind == Event.EXHAUSTED:
            self.exhausted = event["text"]
        elif kind == Event.HOST_MEMORY:
            self.host_memory = event["text"]
        elif kind == Event.END:
            self.end = End(event["step"], event["finished"])


def private_stdout() -> TextIO:
    """The stdout that the parent reads. From here on, the prints of libraries go to stderr."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private
