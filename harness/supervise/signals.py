"""All signal handling: requests to stop, death with the parent, and ending by the child's signal."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# The variable that holds the supervisor's process id. A trainer ends with that process.
SUPERVISOR = "HARNESS_SUPERVISOR"
# Source: prctl(2), PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1
# timeout(1) signals its command and then the command's group, a shell that is hung up its jobs once more: one
# request, heard twice. A person's second Ctrl-C comes later.
_SAME_S = 0.5


@contextmanager
def stop_requests(
    heard: Callable[[signal.Signals], None],
    *,
    once: bool = False,
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
) -> Iterator[None]:
    """Calls `heard` on SIGTERM, Ctrl-C and the end of the terminal inside the block.

    The earlier handlers are restored after it. What nohup(1) has this process ignore stays ignored. A signal
    that comes at once after another one of its kind is the same request. With `once`, the earlier handler is
    back from the second signal of a kind on.
    """
    latest: dict[int, float] = {}

    def handle(number: int, _: FrameType | None) -> None:
        before, latest[number] = latest.get(number), time.monotonic()
        if before is not None and latest[number] - before < _SAME_S:
            return
        if number == signal.SIGHUP:
            _leave_terminal()
        heard(signal.Signals(number))
        if once:
            signal.signal(number, previous[signal.Signals(number)])

    hung_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    previous = {
        number: signal.signal(number, handle) for number in numbers if number != signal.SIGHUP or hung_up
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Has what is still written to a terminal that is gone go nowhere: an error would end the save."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(nowhere, number)
    os.close(nowhere)


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
