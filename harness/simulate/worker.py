"""A process of the simulator: it takes orders from `harness evaluate` as frames, and answers them.

Frames go over the standard input and output that it was started with. What libraries print goes to the
standard error. It ends at the end of its input, at "stop", at SIGTERM, and when its parent is gone.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from harness.errors import HarnessError
from harness.simulate import certify, controls, episode, frames, gl, protocol
from harness.simulate.environment import Environment, versions
from harness.simulate.frames import Array, Message
from harness.simulate.observation import Observation

LOOKS_EVERY_S = 1.0


class _Stopped(Exception):
    """The other end wants no more."""


class _Abandoned(Exception):
    """The other end wants this episode to end without an outcome."""


class Worker:
    """One worker, with the environment of the last task that it drove."""

    def __init__(self, source: frames.Reads, sink: frames.Writes) -> None:
        self._source, self._sink = source, sink
        self._made: tuple[object, Environment] | None = None

    def serve(self) -> None:
        """Answer orders until there are no more."""
        while True:
            got = frames.receive(self._source)
            if got is None:
                return
            try:
                self._obey(*got)
            except _Stopped:
                return
            except _Abandoned:
                self.say({"is": "abandoned"})
            except BrokenPipeError:
                return
            except HarnessError as error:
                self.say(_told(error))
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                # The environment may be in any state now.
                self._forget()
                self.say(_told(_unexpected(error)))

    def say(self, message: Message, arrays: Mapping[str, Array] | None = None) -> None:
        frames.send(self._sink, message, arrays)

    def _obey(self, order: Message, _arrays: Mapping[str, Array]) -> None:
        orders: dict[object, Callable[[Message], None]] = {
            "hello": self._hello,
            "certify": self._certify,
            "drive": self._drive,
            "stop": _stop,
        }
        if order.get("do") not in orders:
            raise _confused(order.get("do"), f"one of {', '.join(map(str, orders))}")
        orders[order["do"]](order)

    def _hello(self, _order: Message) -> None:
        found = versions()
        drawn = gl.renderer()
        self.say({"is": "ready", "versions": found, "renderer": drawn.pop("name"), "renderer_details": drawn})

    def _certify(self, order: Message) -> None:
        self._forget()
        wanted = protocol.shipped(str(order.get("protocol", "openpi"))).versions
        findings = certify.certify(wanted)
        self.say({"is": "certified", "findings": [finding._asdict() for finding in findings]})

    def _drive(self, order: Message) -> None:
        suite, task, number = order.get("suite"), order.get("task"), order.get("episode")
        values = protocol.check(order.get("protocol") or {})
        if suite not in values.max_steps or type(task) is not int or type(number) is not int:
            raise _confused(f"{suite!r} {task!r} {number!r}", "a suite, the numbers of a task and an episode")
        kind = str(order.get("policy"))
        control = controls.control(kind, values, suite, task, number)
        env = self._environment(suite, task, values)
        pictures = kind == "remote" or bool(order.get("pictures"))

        def ask(query: int, seen: Observation, sha256: str) -> Array | None:
            message = {"is": "query", "number": query, "prompt": seen.prompt, "sha256": sha256}
            drawn = {"image": seen.image, "wrist_image": seen.wrist_image} if pictures else {}
            self.say(message, {**drawn, "state": seen.state})
            return self._answer(kind)

        driven = episode.drive(
            env, number, control, ask, lambda sha256: self.say({"is": "scene", "sha256": sha256})
        )
        self.say(
            {
                "is": "episode",
                "outcome": "success" if driven.success else "failure",
                "initial_state": number,
                **{key: value for key, value in driven._asdict().items() if key != "success"},
            }
        )

    def _answer(self, kind: str) -> Array | None:
        """The actions of the policy; None for a control."""
        got = frames.receive(self._source)
        if got is None:
            raise _Stopped
        message, arrays = got
        answer = message.get("do")
        if answer == "stop":
            raise _Stopped
        if answer == "abandon":
            raise _Abandoned
        if answer != ("act" if kind == "remote" else "go on"):
            raise _confused(answer, "act, with actions" if kind == "remote" else "go on")
        return arrays.get("actions")

    def _environment(self, suite: str, task: int, values: protocol.Values) -> Environment:
        """The environment of a task: the one of before, or a new one."""
        key = (suite, task, repr(values))
        if self._made is None or self._made[0] != key:
            self._forget()
            self._made = key, Environment(suite, task, values)
        return self._made[1]

    def _forget(self) -> None:
        if self._made is not None:
            made, self._made = self._made, None
            made[1].close()


def _stop(_order: Message) -> NoReturn:
    raise _Stopped


def _confused(got: object, need: str) -> HarnessError:
    return HarnessError(
        "simulator-confused",
        "the simulator was given an order that it does not know",
        got=got,
        need=need,
        fix="use the same version of the harness at both ends",
    )


def _unexpected(error: Exception) -> HarnessError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HarnessError(
            "disk-full",
            f"the simulator cannot write: {error.strerror}",
            got=error.filename,
            need="free space",
            fix="free space on that file system, then run the same command again: finished episodes are kept",
        )
    return HarnessError(
        "simulator-failed",
        "the simulator failed inside of an episode",
        got=f"{type(error).__name__}: {error}"[:500],
        need="an episode that ends",
        fix="read the simulator's log for the whole error; another episode begins with a new environment",
    )


def _told(error: HarnessError) -> Message:
    return {
        "is": "error",
        "code": error.code,
        "what": error.what,
        "got": error.got,
        "need": error.need,
        "fix": error.fix,
    }


def _watch(parent: int) -> None:
    """End this process when its parent is gone. The end of the input says so too, but only between steps."""
    while os.getppid() == parent:
        time.sleep(LOOKS_EVERY_S)
    os._exit(1)


def main() -> NoReturn:
    """Serve until there is nothing more to do, and end at once: freeing EGL at exit fails in some drivers."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    # Ctrl-C is for the parent, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    source, sink = frames.own_streams()
    code = 0
    try:
        try:
            gl.choose()
        except HarnessError as error:
            # The first order is answered with what is missing.
            if frames.receive(source) is not None:
                frames.send(sink, _told(error))
            os._exit(2)
        Worker(source, sink).serve()
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit(code)
