"""One attempt: a trainer in a child process, its events, and how it ended.

This process never imports JAX.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harness.probe.cgroup import oom_kills
from harness.received.text import for_terminal
from harness.redact import redact
from harness.run.watcher import Watcher
from harness.supervise.channel import Heard
from harness.supervise.signals import SUPERVISOR, stop_requests

_POLL_S = 1.0
_LAST_WORDS = 40
# For a trainer that does not answer: the time from the request to stop until it is killed.
_GRACE_S = 60


@dataclass
class Attempt(Heard):
    """The events of one trainer process, and how it ended.

    `stopped_for` is the supervisor's own reason to stop it. `asked_to_stop` counts the requests from outside.
    """

    returncode: int = 0
    asked_to_stop: int = 0
    stopped_for: str | None = None
    silent_s: float = 0.0
    oom_killed: bool = False
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_WORDS))

    @property
    def ended_before_it_began(self) -> bool:
        """True if the request to stop came before the first step, while SIGTERM still killed the process."""
        return self.asked_to_stop > 0 and self.returncode == -signal.SIGTERM and not self.steps


@dataclass(frozen=True)
class Limits:
    """The limits beyond which a trainer is stopped.

    `silent_s`: seconds without any event (fewer between steps whose pace is known). `slower`: a step may take
    so many times `expected_step_s`, if that is known.
    """

    silent_s: float = 3600
    # Limit between steps whose pace is known: `silent_times` the longest wait for a line so far, but at least
    # this long.
    silent_between_steps_s: float = 600
    silent_times: float = 20
    expected_step_s: float | None = None
    slower: float = 10
    # The first steps wait for the loader and for the device to warm up.
    steps_before_judging: int = 5


def attempt(
    command: Sequence[str], watcher: Watcher, limits: Limits, *, inherit: Sequence[int] = ()
) -> Attempt:
    """The ended attempt of `command`, whose stdout has one line of JSON per event.

    SIGTERM and Ctrl-C are passed on to the process.
    """
    result, kills = Attempt(), oom_kills()
    environment = os.environ | {SUPERVISOR: str(os.getpid())}
    # In a session of its own: Ctrl-C on the terminal reaches only this process, which passes it on once.
    child = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        pass_fds=tuple(inherit),
        bufsize=0,
    )
    assert child.stderr is not None
    ears = threading.Thread(target=_listen, args=(child.stderr, result.last_words), daemon=True)
    ears.start()

    def pass_on(_: signal.Signals) -> None:
        """Asks the trainer to save and end. The second request kills it at once."""
        if child.poll() is None:
            child.send_signal(signal.SIGKILL if result.asked_to_stop else signal.SIGTERM)
        result.asked_to_stop += 1

    with stop_requests(pass_on):
        _follow(child, result, watcher, limits)
    result.returncode = child.wait()
    ears.join(timeout=5)
    after = oom_kills()
    result.oom_killed = kills is not None and after is not None and after > kills
    return result


def _follow(child: subprocess.Popen[bytes], result: Attempt, watcher: Watcher, limits: Limits) -> None:
    """Reads events until the process has closed its stdout, is gone, or must be stopped."""
    assert child.stdout is not None
    heard, rest, longest = time.monotonic(), b"", 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_POLL_S):
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    return
                now = time.monotonic()
                if len(result.steps) > 1:
                    longest = max(longest, now - heard)
                heard = now
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    result.take(line, watcher)
                if _too_slow(result, limits):
                    result.stopped_for = "slow"
            elif child.poll() is not None:
                # A child of its own that has outlived it holds its stdout open.
                return
            elif (silent := time.monotonic() - heard) > _patience(result, limits, longest):
                result.stopped_for, result.silent_s = "hung", silent
            if result.stopped_for:
                _stop(child, result, watcher)
                return


def _patience(result: Attempt, limits: Limits, longest: float) -> float:
    """Seconds that the process may be silent.

    Compiling, loading and saving have no pace. Monotonic time stands still while a machine sleeps.
    """
    if result.phase != "step" or len(result.steps) < limits.steps_before_judging:
        return limits.silent_s
    return min(limits.silent_s, max(limits.silent_between_steps_s, limits.silent_times * longest))


def _too_slow(result: Attempt, limits: Limits) -> bool:
    expected, recent = (
        limits.expected_step_s,
        [line.step_s for line in result.steps[2:]][-limits.steps_before_judging :],
    )
    if expected is None or len(recent) < limits.steps_before_judging:
        return False
    return sorted(recent)[len(recent) // 2] > limits.slower * expected


def _stop(child: subprocess.Popen[bytes], result: Attempt, watcher: Watcher) -> None:
    """Asks the process to save and end. Kills it if it does not answer in time."""
    child.terminate()
    deadline = time.monotonic() + (_GRACE_S if result.stopped_for == "hung" else 15 * _GRACE_S)
    assert child.stdout is not None
    rest = b""
    os.set_blocking(child.stdout.fileno(), False)
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        rest += child.stdout.read() or b""
    if child.poll() is None:
        child.kill()
        child.wait()
    rest += child.stdout.read() or b""
    for line in rest.split(b"\n"):
        if line.startswith(b"{") and line.endswith(b"}"):
            result.take(line, watcher)


def _listen(stream: Any, last_words: deque[str]) -> None:
    """Passes the trainer's stderr on, cleaned of secrets and control characters, and keeps its last lines."""
    for line in stream:
        text = for_terminal(redact(line.decode(errors="replace").rstrip()))
        last_words.append(text)
        # A terminal may be gone. Whoever stopped reading would block the trainer.
        with suppress(OSError):
            os.write(2, text.encode() + b"\n")
