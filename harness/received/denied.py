"""What the operating system refuses, as a refusal instead of a traceback."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from harness.errors import HarnessError
from harness.received.text import word

# Answers of the system that speak of disks and names, and of no mistake of this program.
_PERMISSION = frozenset({errno.EACCES, errno.EPERM})
_DISK = frozenset(
    {
        errno.EIO,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.EHOSTDOWN,
    }
)
# Of these no error of this program is one, even where nothing says which file it was.
_DISK_ALONE = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE})


def denied(error: Exception) -> HarnessError | None:
    """The refusal for a file or memory that the system does not let this process use.

    None for any other error.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return HarnessError(
            "host-out-of-memory",
            "the system gives this process no more memory",
            got=f"ulimit -v {_most_memory()}",
            need="memory for the files that are read",
            fix="ulimit -v unlimited; or give the container or the machine more memory",
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return too_many_files()
    named = isinstance(error.filename, str)
    if error.errno not in (_PERMISSION | _DISK if named else _DISK_ALONE):
        return None
    if error.errno in _PERMISSION:
        return HarnessError(
            "path-refused",
            f"{error.filename} may not be used: {error.strerror}",
            got=f"uid {os.getuid()}",
            need="a path that this user may use, and so each directory above it",
            fix=may_be_opened(Path(error.filename)),
        )
    return HarnessError(
        "path-refused",
        f"{error.filename[:200] if named else 'a file'} cannot be used: {error.strerror}",
        need="a disk that answers and has space, and a name that it takes",
        fix="df -h; or name another directory",
    )


def too_many_files() -> HarnessError:
    """The refusal for a process, or a machine, that has as many files open as it may."""
    return HarnessError(
        "too-many-files",
        "the system lets this process open no more files",
        got=f"ulimit -n {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}",
        need="room for the files that are used",
        fix="ulimit -n $(ulimit -Hn), then run the same command again",
    )


def _most_memory() -> str:
    """The limit of this process's memory as the shell prints it."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit // 1024}"


def may_be_opened(path: Path, mode: str = "u+rwX") -> str:
    """The fix for a path that may not be used: it names the outermost directory that may not be entered.

    Only the owner can change a mode, so somebody else's needs the owner.
    """
    shut = next((each for each in reversed(path.parents) if not os.access(each, os.X_OK)), path)
    if _is_others(shut):
        return (
            f"run as the user who owns it (ls -ld {word(shut)}), or let that user run chmod a+rX {word(shut)}"
        )
    return f"chmod {word(mode)} {word(shut)}, or run as the user who owns it: ls -ld {word(shut)}"


def may_all_be_read(path: Path) -> str:
    """The fix for a directory of which this user may not read all."""
    if all(os.access(each, os.X_OK) for each in path.parents) and not _is_others(path):
        return f"chmod -R u+rX {word(path)}, or run as the user who wrote it"
    return may_be_opened(path)


def may_be_written(path: Path) -> str:
    """The command after which `path`, or the directory above that is there, may be written.

    The owner gives himself the right. Only root changes an owner.
    """
    there = next((each for each in (path, *path.absolute().parents) if os.path.lexists(each)), path)
    return f"{'sudo chown $(id -u)' if _is_others(there) else 'chmod u+rwX'} {word(there)}"


def _is_others(path: Path) -> bool:
    """True if another user owns `path`."""
    try:
        return os.stat(path).st_uid != os.geteuid()
    except OSError:
        return False
