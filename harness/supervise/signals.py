"""All signal handling: requests to stop, death with the parent, and ending by the child's signal."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# The variable that holds the supervisor's process id. A trainer ends with that process.
SUPERVISOR = "HARNESS_SUPERVISOR"
# Source: prctl(2), PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


@contextmanager
def stop_requests(
    heard: Callable[[signal.Signals], None],
    *,
    once: bool = False,
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[None]:
    """Calls `heard` on SIGTERM and Ctrl-C inside the block, and restores the earlier handlers after it.

    With `once`, the earlier handler is back from the second signal of a kind on.
    """

    def handle(number: int, _: FrameType | None) -> None:
        heard(signal.Signals(number))
        if once:
            signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def die_with_supervisor() -> None:
    """Makes this process die with the one that `SUPERVISOR` names, if any.

    A trainer without its supervisor would hold the GPU and write into a run that somebody resumes.
    """
    parent = int(os.environ.get(SUPERVISOR, "0"))
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(2)


def end_at_once(status: int) -> None:
    """Ends this process with an exit status. Nothing that is registered for its end is run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_by(number: int) -> None:
    """Ends this process by a signal, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
