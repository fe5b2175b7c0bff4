"""One process a run directory. The kernel holds the lock, so a process that dies, however it dies, lets go of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from harness.errors import HarnessError

LOCK = ".lock"
# What a filesystem answers that has no locks (some network filesystems): the run goes on without one.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(run: Path) -> Iterator[int]:
    """The lock's file descriptor, while this process alone may write into the run directory.

    A child that inherits the descriptor holds the lock too: nobody else gets in before both have ended.
    Raises: HarnessError "run-busy" when a living process holds it, "not-writable" when the directory cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+")
    except OSError as error:
        raise HarnessError(
            "not-writable",
            f"cannot write in {run}: {error.strerror}",
            got=f"uid {os.getuid()}",
            need="a run directory that this user may write",
            fix=f"chown $(id -u) {run}; in compose set HARNESS_UID and HARNESS_GID to your own ids",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HarnessError(
                "run-busy",
                f"another process is training in {run}",
                got=_described(_read(file)),
                need="one process a run directory",
                fix=f"wait for it, or stop it (SIGTERM saves); a run of its own: --name NEW. To look at it: harness status {run}",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, file)
        file.flush()
        yield file.fileno()


def holder(run: Path) -> str | None:
    """Who else holds the run directory, in words; None when nobody living does, or this process itself."""
    try:
        file = (run / LOCK).open("r")
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read(file)
            ours = owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname()
            return None if ours else _described(owner)
        except OSError:
            return None
    return None


def _read(file: TextIO) -> dict[str, object]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _described(owner: dict[str, object]) -> str:
    if not owner:
        return "a process that has not said who it is"
    since = owner.get("since")
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since)) if isinstance(since, int | float) else "an unknown time"
    # A process in a container is numbered there, so the host's name stands beside the number.
    return f"process {owner.get('pid')} on {owner.get('host')}, since {started}"
