"""A disk that fails at the N-th thing that is done to it, in this process.

Everything that Python changes below a directory passes here: names that are made, renamed or removed, bytes,
flushes and locks. What a library writes by itself (tensorstore) does not.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# The functions of os that change a disk: whether the first argument is a descriptor.
_NAMES = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink")
_DESCRIPTORS = ("write", "pwrite", "fsync", "fdatasync", "ftruncate")
# What a full disk does not refuse.
_FREES = ("unlink", "remove", "rmdir", "fsync", "fdatasync", "flock", "ftruncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """The disk below `root`. `points` are the things that were done: what, and to which name.

    From the `at`-th on everything fails with `number`, or with `once` that one alone. `short` writes half of
    the bytes first. `look` is called before each thing.
    """

    def __init__(
        self,
        root: Path,
        *,
        at: int = 0,
        number: int = errno.EIO,
        once: bool = False,
        short: bool = False,
        look: Callable[[int], None] | None = None,
    ) -> None:
        self.root, self.points = os.path.realpath(root) + os.sep, list[tuple[str, str]]()
        self._at, self._number, self._once, self._short, self._look = at, number, once, short, look
        self._looks = False

    def fails(self, what: str, path: Any) -> bool:
        """Counts a thing; whether the disk refuses it."""
        name = self._name(path)
        if self._looks or not name.startswith(self.root):
            return False
        self.points.append((what, name))
        if self._look is not None:
            self._looks = True
            self._look(len(self.points))
            self._looks = False
        number = len(self.points)
        if not self._at or number < self._at or (self._once and number > self._at):
            return False
        return not (self._number in (errno.ENOSPC, errno.EDQUOT) and what in _FREES)

    def short(self) -> bool:
        """Whether the write that fails now takes half of its bytes, as the last of a disk does."""
        return self._short and len(self.points) == self._at

    def error(self, path: Any = None) -> OSError:
        text = os.strerror(self._number)
        # As the system says it: a descriptor has no name.
        return (
            OSError(self._number, text, os.fspath(path)) if path is not None else OSError(self._number, text)
        )

    def _name(self, path: Any) -> str:
        if isinstance(path, int):
            try:
                return os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return ""
        return os.path.join(os.getcwd(), os.fsdecode(path))


@contextmanager
def on(disk: Disk) -> Iterator[Disk]:
    """Lets everything in the block pass `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _NAMES:
            patch.setattr(os, name, _by_name(disk, name, getattr(os, name)))
        for name in _DESCRIPTORS:
            patch.setattr(os, name, _by_descriptor(disk, name, getattr(os, name)))
        patch.setattr(fcntl, "flock", _by_descriptor(disk, "flock", fcntl.flock))
        patch.setattr(os, "open", _opening(disk, os.open))
        opened = _files(disk, io.open)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield disk


def _by_name(disk: Disk, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *rest: Any, **more: Any) -> Any:
        # A name below an open directory, as rmtree removes it.
        within = more.get("dir_fd")
        place = path if within is None else f"{os.readlink(f'/proc/self/fd/{within}')}/{os.fsdecode(path)}"
        if disk.fails(what, place):
            raise disk.error(path)
        return real(path, *rest, **more)

    return call


def _by_descriptor(disk: Disk, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any, *rest: Any) -> Any:
        number = file if isinstance(file, int) else file.fileno()
        if not disk.fails(what, number):
            return real(file, *rest)
        if what in ("write", "pwrite") and disk.short():
            return real(file, rest[0][: len(rest[0]) // 2], *rest[1:])
        raise disk.error()

    return call


def _opening(disk: Disk, real: Callable[..., int]) -> Callable[..., int]:
    def call(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & _WRITING and more.get("dir_fd") is None and disk.fails("open", path):
            raise disk.error(path)
        return real(path, flags, *rest, **more)

    return call


class _Raw(io.FileIO):
    disk: Disk

    def write(self, data: Any) -> int:
        if not self.disk.fails("write", self.fileno()):
            return super().write(data)
        if self.disk.short() and len(data) > 1:
            return super().write(bytes(data)[: len(data) // 2])
        raise self.disk.error()

    def truncate(self, size: int | None = None) -> int:
        if self.disk.fails("ftruncate", self.fileno()):
            raise self.disk.error()
        return super().truncate(size)


def _files(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real(file, mode, buffering, *rest, **more)
        if not isinstance(file, int) and disk.fails("open", file):
            raise disk.error(file)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd=more.get("closefd", True))
        raw.disk = disk
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, more.get("encoding"))

    return call
