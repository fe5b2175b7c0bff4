"""Opens files that may come from other people, with the same checks for all.

A run, a checkpoint or a dataset is a directory, its *root*. A file of it is opened only if it is a regular
file (no FIFO, device, socket) that lies below the root after every link is followed. It is read only up to
the limit of its kind. This module truncates, locks and creates nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from harness.errors import HarnessError
from harness.received.text import word
from harness.units import GIB, KIB, MIB, format_bytes

# The most bytes that are read from a file of each kind. Real files are far smaller.
LOCK_BYTES = 64 * KIB
MARK_BYTES = MIB
RECIPE_BYTES = MIB
ARTIFACT_BYTES = 16 * MIB
PICTURE_BYTES = 32 * MIB
METRICS_BYTES = GIB
# The most levels and entries of a tree. A larger tree is refused.
DEEPEST = 64
MOST_ENTRIES = 2_000_000


class UnsafeFile(HarnessError):
    """The error for a file that is not opened: a link out of its root, not regular, or too large."""


def stays(root: Path, path: Path) -> bool:
    """True if `path` lies below `root` after all links are followed.

    The hub cache's links to its own blobs count as below.

    Raises: OSError, RuntimeError or ValueError for a path that cannot be followed.
    """
    return _below(path.resolve(), root.resolve())


def _below(target: Path, home: Path) -> bool:
    if target.is_relative_to(home):
        return True
    # huggingface_hub keeps <cache>/snapshots/<commit>/file as a link to <cache>/blobs/<hash>.
    snapshot = next(
        (directory for directory in (home, *home.parents) if directory.parent.name == "snapshots"), None
    )
    return snapshot is not None and target.is_relative_to(snapshot.parent.parent / "blobs")


def there(path: Path) -> bool:
    """True if the name exists, even as a link that leads nowhere.

    Such a file is then opened, or refused by name.
    """
    return os.path.lexists(path)


def open_received(path: Path, root: Path) -> BinaryIO:
    """The regular file `path` below `root`, open for reading.

    Raises: UnsafeFile "file-leaves-root" or "file-not-regular"; OSError as `open` does.
    """
    real = check_stays(path, root)
    _check_regular(path, os.stat(real).st_mode)
    # Another file may replace this one between the check and the opening. O_NONBLOCK does not wait for a
    # FIFO's writer; O_NOFOLLOW follows no new link.
    descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_received(path: Path, root: Path, limit_bytes: int) -> bytes:
    """All bytes of the regular file `path` below `root`.

    Raises: UnsafeFile also for more than `limit_bytes` ("file-too-large"); OSError as `open` does.
    """
    with open_received(path, root) as file:
        size = os.fstat(file.fileno()).st_size
        # `read` asks for the memory of all that it may read, so the limit is no number to give it.
        data = file.read(size + 1) if size <= limit_bytes else b""
        if len(data) > size:
            data += file.read(limit_bytes + 1 - len(data))
    if size > limit_bytes or len(data) > limit_bytes:
        raise UnsafeFile(
            "file-too-large",
            f"{path} is larger than any file of its kind; it was not read",
            got=format_bytes(max(size, len(data))),
            need=f"at most {format_bytes(limit_bytes)}",
            fix=(
                "do not use it unless you know who made it; to look at its beginning: head -c 2000"
                f" {word(path)}"
            ),
        )
    return data


def check_stays(path: Path, root: Path) -> Path:
    """The target of `path` after all links are followed, checked to lie below `root`.

    Raises: UnsafeFile "file-leaves-root"; OSError as `os.stat` does.
    """
    leads: object = "a link to itself, or no path at all"
    try:
        leads = target = path.resolve()
        if _below(target, root.resolve()):
            return target
    except (RuntimeError, ValueError):
        pass
    raise UnsafeFile(
        "file-leaves-root",
        f"{path} is a link that leads out of {root}; it was not followed",
        got=leads,
        need=f"a file inside {root}",
        fix=(
            "do not use it unless you trust who made it; if the link is yours, put the files there:"
            f" cp -rL {word(root)} COPY"
        ),
    )


def walk(root: Path, *, strays: list[Path] | None = None) -> Iterator[Path]:
    """The regular files below `root`, each once, in no guaranteed order.

    No link to a directory is followed. `strays` receives the paths that are left out: links that lead out of
    `root` or nowhere, linked directories, FIFOs, devices, sockets.
    Raises: UnsafeFile "tree-too-large" for more than 2,000,000 entries or 64 levels; OSError as `os.scandir`
    does.
    """
    count = 0
    todo = [(root, 0)]
    while todo:
        folder, depth = todo.pop()
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        count += len(found)
        if count > MOST_ENTRIES or depth > DEEPEST:
            raise UnsafeFile(
                "tree-too-large",
                f"{root} is no directory of a run, checkpoint or dataset: it was not read to its end",
                got=(
                    f"more than {MOST_ENTRIES:,} entries"
                    if count > MOST_ENTRIES
                    else f"more than {DEEPEST} levels"
                ),
                need=f"at most {MOST_ENTRIES:,} entries and {DEEPEST} levels",
                fix="give the directory of the run, checkpoint or dataset itself, not one above it",
            )
        folders = []
        for entry in found:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, depth + 1))
            elif entry.is_file(follow_symlinks=False) or (entry.is_symlink() and _regular_inside(path, root)):
                yield path
            elif strays is not None:
                strays.append(path)
        todo += reversed(folders)


def _regular_inside(path: Path, root: Path) -> bool:
    try:
        return path.is_file() and stays(root, path)
    except (OSError, RuntimeError, ValueError):
        return False


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "Is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise UnsafeFile(
            "file-not-regular",
            f"{path} is no regular file; it was not opened",
            got=next((name for is_it, name in _KINDS if is_it(mode)), "another kind of file"),
            need="a regular file",
            fix=(
                f"do not use this directory unless you know who made it; to see what it is: stat {word(path)}"
            ),
        )


_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
