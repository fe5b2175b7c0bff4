"""The lock of a run directory: one process per directory.

The kernel holds the lock, so it is released whenever and however the process dies.
"""

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
from typing import IO

from harness.errors import HarnessError
from harness.received.files import LOCK_BYTES, open_received
from harness.received.json import parse_json
from harness.received.text import word
from harness.received.unwritable import cannot_write
from harness.received.writing import open_to_write

LOCK = ".lock"
# The year 5138.
_LAST_TIME = 10**11
# How long at most another process looks who holds a lock.
_LOOK_S = 0.5
# The errors of a filesystem without locks (some network filesystems). Work there goes on without a lock.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(run: Path) -> Iterator[int]:
    """The lock's file descriptor. While it is open, only this process may write into the run directory.

    A child that inherits the descriptor holds the lock too. No other process gets the lock before both have
    ended.
    Raises: HarnessError "run-busy" if a living process holds it, "not-writable" or "disk-full" if the
    directory cannot be written; UnsafeFile "file-not-regular" if a link or FIFO has the lock's name.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that closing has nothing left to write that could fail a second time.
        file = os.fdopen(open_to_write(run / LOCK), "r+b", buffering=0)
    except OSError as error:
        raise cannot_write(run / LOCK, error) from error
    with file:
        try:
            _take(file)
        except BlockingIOError as error:
            raise HarnessError(
                "run-busy",
                f"another process is training in {run}",
                got=_described(_read(file)),
                need="one process for each run directory",
                fix=(
                    "wait for it, or stop it (SIGTERM saves); a run of its own: --name NEW. To look at it:"
                    f" harness status {word(run)}"
                ),
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise cannot_write(run / LOCK, error) from error
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        try:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(who).encode())
        except OSError as error:
            raise cannot_write(run / LOCK, error) from error
        yield file.fileno()


def _take(file: IO[bytes]) -> None:
    """Takes the lock.

    Whoever asks who holds it (`holder`) shares it for a moment, and is waited for.
    Raises: BlockingIOError if another process keeps it; OSError as `flock`.
    """
    until = time.monotonic() + _LOOK_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(_LOOK_S / 50)


def holder(run: Path) -> str | None:
    """A description of the other process that holds the run directory.

    None if no living process holds it, or if this process does.

    Raises: UnsafeFile if the lock's name is not a file of the run.
    """
    try:
        file = open_received(run / LOCK, run)
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


def last_host(run: Path) -> str | None:
    """The machine of the process that last held the run, as that process recorded it.

    Raises: UnsafeFile as `holder`.
    """
    try:
        with open_received(run / LOCK, run) as file:
            host = _read(file).get("host")
    except OSError:
        return None
    return str(host) if host else None


def _read(file: IO[bytes]) -> dict[str, object]:
    """The lock file's data on its holder; empty if the file is not a lock file."""
    file.seek(0)
    try:
        found = parse_json(file.read(LOCK_BYTES))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _described(owner: dict[str, object]) -> str:
    if not owner:
        return "a process that has not said who it is"
    since = owner.get("since")
    # A number outside this range is not a time.
    known = isinstance(since, int | float) and 0 <= since < _LAST_TIME
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since)) if known else "an unknown time"  # type: ignore[arg-type]
    # A process in a container has a number of that container, so the host's name is given too.
    return f"process {owner.get('pid')} on {owner.get('host')}, since {started}"
