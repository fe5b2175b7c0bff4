"""Signals, all of them here: what asks a process to stop, and how a process ends with its parent or as its
child did.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# The variable that names the process without which a trainer ends.
SUPERVISOR = "HARNESS_SUPERVISOR"
# Source: prctl(2), PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


@contextmanager
def stop_requests(heard: Callable[[signal.Signals], None], *, once: bool = False) -> Iterator[None]:
    """Tells `heard` of SIGTERM and Ctrl-C inside of the block; after it they do what they did before.

    With `once`, that is so from the second one of a kind on.
    """

    def handle(number: int, _: FrameType | None) -> None:
        heard(signal.Signals(number))
        if once:
            signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def die_with_supervisor() -> None:
    """Ties this process to the one that `SUPERVISOR` names, if any.

    A trainer without its supervisor would hold the GPU and write into a run that somebody resumes.
    """
    parent = int(os.environ.get(SUPERVISOR, "0"))
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(2)


def end_by(number: int) -> None:
    """Ends this process by a signal, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
