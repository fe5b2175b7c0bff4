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
from typing import BinaryIO

from harness.errors import HarnessError
from harness.received.denied import may_be_written
from harness.received.files import LOCK_BYTES, open_received
from harness.received.json import parse_json
from harness.received.text import word
from harness.received.writing import open_to_write

LOCK = ".lock"
# The year 5138.
_LAST_TIME = 10**11
# The errors of a filesystem without locks (some network filesystems). The run then continues without a lock.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(run: Path) -> Iterator[int]:
    """The lock's file descriptor. While it is open, only this process may write into the run directory.

    A child that inherits the descriptor holds the lock too. No other process gets the lock before both have
    ended.
    Raises: HarnessError "run-busy" if a living process holds it, "not-writable" if the directory cannot be
    written; UnsafeFile "file-not-regular" if a link or FIFO has the lock's name.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_to_write(run / LOCK), "r+b")
    except OSError as error:
        raise HarnessError(
            "not-writable",
            f"cannot write in {run}: {error.strerror}",
            got=f"uid {os.getuid()}",
            need="a run directory that this user may write",
            fix=f"{may_be_written(run)}; in compose set HARNESS_UID and HARNESS_GID to your own ids",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            if error.errno not in _NO_LOCKS:
                raise
        file.seek(0)
        file.truncate()
        file.write(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()
        )
        file.flush()
        yield file.fileno()


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


def _read(file: BinaryIO) -> dict[str, object]:
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
