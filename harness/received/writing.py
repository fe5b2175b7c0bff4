"""Opens files for writing in directories that may come from other people.

A file is created there or refused. No link redirects the bytes.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.received.files import UnsafeFile
from harness.received.text import word

# The descriptor is not inherited by programs started later. The open follows no link, does not wait for a
# FIFO, and takes no controlling terminal.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def open_to_write(path: Path, *, append: bool = False) -> int:
    """The descriptor of the regular file `path`, open for reading and writing.

    The file is created if it does not exist, and never truncated here.

    Raises: UnsafeFile "file-not-regular" for a link, FIFO, device or socket; OSError as `os.open` does.
    """
    # A missing file is created below.
    with suppress(FileNotFoundError):
        _check_regular(path, os.lstat(path).st_mode)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS | (os.O_APPEND if append else 0), 0o666)
    except OSError as error:
        # A link may have appeared between the check and the opening.
        raise _refusal(path, "a link") if error.errno == errno.ELOOP else error from error
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_beside(path: Path) -> tuple[int, Path]:
    """Descriptor and name of a new file in the directory of `path`.

    The caller renames it to `path` when it is complete. Its mode follows the umask.

    Raises: OSError as `os.open` does.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666), temporary


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise _refusal(
            path,
            (
                "a link"
                if stat.S_ISLNK(mode)
                else "a directory"
                if stat.S_ISDIR(mode)
                else "a FIFO, device or socket"
            ),
        )


def _refusal(path: Path, got: str) -> HarnessError:
    return UnsafeFile(
        "file-not-regular",
        f"{path} is no regular file; nothing was written to it",
        got=got,
        need="a regular file, or none",
        fix=f"look where it leads, then remove it: ls -l {word(path)}; rm {word(path)}",
    )
