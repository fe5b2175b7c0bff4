"""Runs one stage in a process of its own, watched: its time, its ending, and the card while it ran."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from pydantic import ValidationError

from harness.artifacts import CalibrationStage, CardState
from harness.calibrate.stages import Answer, Request
from harness.plan.compile import telling, tells_of_memory
from harness.probe.readings import load_of, slowed
from harness.received.text import for_terminal
from harness.redact import redact
from harness.supervise.signals import SUPERVISOR

_POLL_S, _LOOK_S = 0.25, 0.5
COMMAND = (sys.executable, "-m", "harness.calibrate.stage")
# What is read of a child's stderr, from its end, and of one line of its stdout.
_LAST_BYTES, _LONGEST_LINE = 64 * 1024, 1 << 20


class Watched(NamedTuple):
    """How a stage is run: its command and environment, who looks at the card, who hears what it does.

    `stopping` says whether it should end now.
    """

    look: Callable[[], CardState]
    hear: Callable[[str], None]
    stopping: Callable[[], bool]
    environment: Mapping[str, str] = {}
    command: Sequence[str] = COMMAND


class Ended(NamedTuple):
    """How a process ended. `late`: it was still at work at its limit; `stopped`: it was asked to end."""

    code: int
    answer: Answer | None
    doing: str
    stderr: str
    late: bool
    stopped: bool
    states: list[CardState]


def run_stage(
    name: str, request: Request, limit_s: float, how: Watched
) -> tuple[CalibrationStage | None, str]:
    """(the stage as it ended, the code of its refusal). None if it was stopped: it is as if never begun."""
    before = how.look()
    request = request.model_copy(update={"used_bytes": before.used_bytes})
    begun = time.monotonic()
    ended = _run(request, limit_s, how)
    if ended.stopped:
        return None, ""
    load, after = load_of(ended.states), how.look()
    state, reason = _outcome(ended, limit_s)
    answer = ended.answer or Answer()
    found = (
        answer.model_dump(include={"ceilings", "context", "plan", "sampling"}) if state == "measured" else {}
    )
    made = CalibrationStage(
        name=name,
        state=state,
        reason=reason,
        marks=slowed(load) if state == "measured" else [],
        wall_s=time.monotonic() - begun,
        before=before,
        during=load,
        after=after,
        **found,
    )
    return made, answer.code or ""


def _outcome(ended: Ended, limit_s: float) -> tuple[Any, str | None]:
    """(the state of the stage, why it measured nothing)."""
    at = f" while {ended.doing}" if ended.doing else ""
    if ended.late:
        return "timeout", f"not done after {limit_s:.0f} s{',' if at else ''}{at}"
    answer = ended.answer
    if ended.code == 0 and answer is not None:
        if answer.refused:
            return "failed", f"[{answer.code}] {answer.refused}"
        return ("skipped", answer.skipped) if answer.skipped else ("measured", None)
    why = telling(ended.stderr)
    if ended.code == -signal.SIGKILL:
        return "failed", f"killed{at}: the kernel does that where host memory is short (dmesg | tail)"
    if why and tells_of_memory(why):
        return "failed", f"out of memory{at}: {why}"
    how = f"ended by {signal.Signals(-ended.code).name}" if ended.code < 0 else f"exit code {ended.code}"
    return "failed", f"{how}{at}: {why or 'it wrote no reason'}"


def _run(request: Request, limit_s: float, how: Watched) -> Ended:
    environment = {**os.environ, **how.environment, SUPERVISOR: str(os.getpid())}
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C reaches this process alone, and its compilers end with it.
        child = subprocess.Popen(
            list(how.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        try:
            return _follow(child, request, limit_s, how, said)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _follow(
    child: subprocess.Popen[bytes], request: Request, limit_s: float, how: Watched, said: IO[bytes]
) -> Ended:
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request.model_dump_json().encode())
    child.stdin.close()
    deadline, looked = time.monotonic() + limit_s, time.monotonic()
    states: list[CardState] = []
    doing, rest, answer = "", b"", None
    late = stopped = False
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_POLL_S):
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    break
                *lines, rest = (rest + data)[-_LONGEST_LINE:].split(b"\n")
                for line in lines:
                    said_doing, found = _heard(line)
                    answer = found or answer
                    if said_doing:
                        doing = said_doing
                        how.hear(doing)
            if time.monotonic() - looked >= _LOOK_S:
                states.append(how.look())
                looked = time.monotonic()
            late, stopped = time.monotonic() >= deadline, how.stopping()
            if late or stopped:
                break
    code = 0
    if not (late or stopped):
        try:
            code = child.wait(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _LAST_BYTES))
    words = for_terminal(redact(said.read().decode(errors="replace")))
    return Ended(code, answer, doing, words, late and answer is None, stopped, states)


def _heard(line: bytes) -> tuple[str, Answer | None]:
    """(what is being done, the answer) of a line; neither for a line that a library has printed."""
    try:
        told = json.loads(line)
        if not isinstance(told, dict):
            return "", None
        if "answer" in told:
            return "", Answer.model_validate(told["answer"])
        return for_terminal(str(told.get("doing", "")))[:200], None
    except (ValueError, ValidationError):
        return "", None
