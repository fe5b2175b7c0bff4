"""One attempt: a trainer in a process of its own, what it says, and how it ended.

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
# Of a trainer that does not answer: the time between the request to stop and its end by force.
_GRACE_S = 60


@dataclass
class Attempt(Heard):
    """What one process told, and how it ended.

    `stopped_for` is why the supervisor itself stopped it; `asked_to_stop` counts the requests from outside.
    """

    returncode: int = 0
    asked_to_stop: int = 0
    stopped_for: str | None = None
    silent_s: float = 0.0
    oom_killed: bool = False
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_WORDS))

    @property
    def ended_before_it_began(self) -> bool:
        """Whether the request to stop reached a process that had not done a step yet, nor learned to answer
        such requests.
        """
        return self.asked_to_stop > 0 and self.returncode == -signal.SIGTERM and not self.steps


@dataclass(frozen=True)
class Limits:
    """When a trainer is stopped: `silent_s` without any event (less between steps whose pace is known); steps
    `slower` times slower than `expected_step_s`, where that is known.
    """

    silent_s: float = 3600
    # Between steps whose pace is known: at least this long, and so many times as long as the longest wait for
    # a line so far.
    silent_between_steps_s: float = 600
    silent_times: float = 20
    expected_step_s: float | None = None
    slower: float = 10
    # The first steps wait for the loader and for the device to warm up.
    steps_before_judging: int = 5


def attempt(
    command: Sequence[str], watcher: Watcher, limits: Limits, *, inherit: Sequence[int] = ()
) -> Attempt:
    """The ended attempt of `command`, whose stdout is a line of JSON an event.

    SIGTERM and Ctrl-C are passed on to it.
    """
    result, kills = Attempt(), oom_kills()
    environment = os.environ | {SUPERVISOR: str(os.getpid())}
    # A session of its own: Ctrl-C on the terminal reaches this process alone, which passes it on once.
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
        """Asks the trainer to save and end; the second time it is ended at once."""
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
    """Reads events until the process has closed its stdout, or must be stopped."""
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
            elif (silent := time.monotonic() - heard) > _patience(result, limits, longest):
                result.stopped_for, result.silent_s = "hung", silent
            if result.stopped_for:
                _stop(child, result, watcher)
                return


def _patience(result: Attempt, limits: Limits, longest: float) -> float:
    """How long the process may say nothing.

    Compiling, loading and saving have no pace; monotonic time stands still while a machine sleeps.
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
    """Asks the process to save and end; by force when it does not answer."""
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
    """Passes the trainer's stderr on, without the secrets and controls that a library may have put there, and
    keeps the end of it.
    """
    for line in stream:
        text = for_terminal(redact(line.decode(errors="replace").rstrip()))
        last_words.append(text)
        os.write(2, text.encode() + b"\n")
