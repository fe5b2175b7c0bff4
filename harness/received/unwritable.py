"""Why a file could not be written, as a refusal whose fix is of that reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from harness.errors import HarnessError
from harness.received.denied import may_be_written, too_many_files
from harness.received.text import word

# The errors of a full disk, and of a full quota.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# The longest path that Linux takes.
_LONGEST_BYTES = 4095


def cannot_write(path: Path, error: OSError) -> HarnessError:
    """The HarnessError for `error`: "disk-full", "too-many-files", or "not-writable"."""
    if error.errno in NO_SPACE:
        return _full(path, error)
    if error.errno == errno.EISDIR:
        return HarnessError(
            "not-writable",
            f"cannot write {path}: a directory has its name",
            need="a file there, or nothing",
            fix=f"mv {word(path)} {word(f'{path}.old')}",
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return HarnessError(
            "not-writable",
            f"cannot write {path}: a file is where a directory is needed",
            got=error.filename or str(path.parent),
            need="a directory",
            fix="name another directory, or move that file away",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return too_many_files()
    return _refused(path, error)


def _full(path: Path, error: OSError) -> HarnessError:
    got, need = error.strerror, "free space"
    if error.errno == errno.ENOSPC and _no_inodes(path):
        got, need = "free space, and no inode left for another file", "free inodes (df -i)"
    return HarnessError(
        "disk-full",
        f"no space to write {path}; checkpoints that are whole stay whole",
        got=got,
        need=need,
        fix=(
            f"free space in {path.parent} (old runs; harness inspect RUN --clean deletes interrupted"
            " saves), then go on with --resume"
        ),
    )


def _no_inodes(path: Path) -> bool:
    """Whether the disk has space, and no inode."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    # A filesystem that makes its inodes as they are needed says 0 of 0.
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


def _refused(path: Path, error: OSError) -> HarnessError:
    what = f"cannot write {path}: {error.strerror}"
    match error.errno:
        case errno.ENAMETOOLONG:
            longest = max(len(os.fsencode(part)) for part in path.parts)
            return HarnessError(
                "not-writable",
                what,
                got=f"a name of {longest} bytes in a path of {len(os.fsencode(path))}",
                need=f"names of at most 255 bytes, and a path of at most {_LONGEST_BYTES}",
                fix="name another file or directory, with a shorter name",
            )
        case errno.EROFS:
            return HarnessError(
                "not-writable",
                what,
                got="a disk that is mounted for reading alone",
                need="a disk that takes writes",
                fix="mount it without :ro (compose) or readonly; after errors of the disk: dmesg | tail",
            )
        case errno.EFBIG:
            return HarnessError(
                "not-writable",
                what,
                got="a limit of a file's size",
                need="no such limit",
                fix="ulimit -f unlimited, then run the same command again",
            )
        case errno.EACCES | errno.EPERM:
            return HarnessError(
                "not-writable",
                what,
                got=f"uid {os.getuid()}",
                need="a directory that this user may write",
                fix=(
                    f"{may_be_written(path.parent)}; in compose set HARNESS_UID and HARNESS_GID to your own"
                    " ids"
                ),
            )
        case _:
            return HarnessError(
                "not-writable",
                what,
                got="a disk that answers with an error",
                need="a working disk",
                fix=f"look at the disk (df -h {word(path.parent)}; dmesg | tail), then run the command again",
            )
