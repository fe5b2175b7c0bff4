"""Both ends' protocol between a trainer and its supervisor: events as lines of JSON on a private stdout."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, TextIO

from harness.artifacts import Metrics

# Source: prctl(2), PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


class Channel:
    """Tells the parent how it goes; a `Watcher`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def tell(self, event: str, **body: Any) -> None:
        self._out.write(json.dumps({"event": event} | body) + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        self.tell("say", text=text)

    def warn(self, text: str) -> None:
        self.tell("warn", text=text)

    def phase(self, name: str) -> None:
        self.tell("phase", name=name)

    def step(self, line: Metrics, steps: int) -> None:
        self.tell("step", line=line.model_dump(mode="json"), steps=steps)


def private_stdout() -> TextIO:
    """The stdout that the parent reads; what libraries print goes to stderr from here on."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def die_with_parent(parent: int) -> None:
    """A trainer without its supervisor would hold the GPU and write into a run that somebody resumes."""
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(2)
