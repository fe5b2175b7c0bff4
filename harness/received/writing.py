"""Opens files for writing in directories that may come from other people.

A file is created there or refused. No link redirects the bytes.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.received.files import UnsafeFile
from harness.received.text import word

# The descriptor is not inherited by programs started later. The open follows no link, does not wait for a
# FIFO, and takes no controlling terminal.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

# The longest name of a file, and what makes a temporary one new.
_NAME_BYTES = 255
_RANDOM_BYTES = 8
_RANDOM = re.compile(r"[0-9a-f]{16}")
# No writer takes so long.
_LEFT_S = 86_400


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
    temporary = path.with_name(f".{_stem(path)}.{secrets.token_hex(_RANDOM_BYTES)}")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666), temporary


def _stem(path: Path) -> str:
    """As much of the name of `path` as leaves room for what is written around it."""
    name = os.fsencode(path.name)
    most = _NAME_BYTES - 2 * _RANDOM_BYTES - 2
    return path.name if len(name) <= most else name[:most].decode(errors="ignore")


def sweep_beside(path: Path) -> None:
    """Removes what `open_beside` made for `path` a day ago or longer: its writer was killed."""
    begin = f".{_stem(path)}."
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if (
                entry.name.startswith(begin)
                and _RANDOM.fullmatch(entry.name[len(begin) :])
                and entry.is_file(follow_symlinks=False)
                and time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_S
            ):
                os.unlink(entry.path)


def to_disk(directory: Path) -> None:
    """Brings every file and every name below `directory` to the disk. A power cut then takes none of them.

    Raises: OSError, if the disk does not take them.
    """
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            _flushed(os.path.join(folder, name), 0)
        _flushed(folder, os.O_DIRECTORY)


def name_to_disk(path: Path) -> None:
    """Brings the name `path` to the disk, after it was made or renamed.

    Raises: OSError.
    """
    _flushed(str(path.parent), os.O_DIRECTORY)


def _flushed(path: str, flags: int) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    except OSError as error:
        # A link, or a file that the umask closed to its own writer, is left to the system.
        if error.errno in (errno.ELOOP, errno.EACCES):
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks have no such call, for directories above all.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


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
