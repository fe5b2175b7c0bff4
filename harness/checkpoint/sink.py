"""Writes a new file from its first byte to its last, past the page cache; its sha256 is made on the way.

A copy through the page cache takes seven times the processor's time of a direct write, and fills memory with
pages that nobody reads. A direct write goes from whole pages of memory to whole pages of the file, so what
fills less than a page is carried over to the next buffer. File systems without direct writes get the same
bytes through the cache. Source: open(2), O_DIRECT.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from harness.units import MIB

Array = np.ndarray[Any, Any]

_BLOCK_BYTES = 32 * MIB
_FLUSH_BYTES = 256 * MIB
# A multiple of every disk's logical block, and of a page.
_PAGE = 4096
# One buffer is filled while the others are hashed and written.
_BUFFERS = 4


class Sink:
    """The file that is open as `descriptor`, empty so far. Its bytes are made in `space` and then `wrote`.

    Leaving the block does not finish the file: `finish` does.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._hashing, self._disk = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._flusher = _Flusher(descriptor)
        self._direct = _set_direct(descriptor, True)
        self._buffers = [_pages(_BLOCK_BYTES + 2 * _PAGE) for _ in range(_BUFFERS)]
        self._work: list[list[Future[None]]] = [[] for _ in self._buffers]
        self._number = 0
        # Of the buffer that is filled: where it begins in the file, its bytes, and how many of them are
        # carried over and so hashed already.
        self._offset = self._filled = self._carried = 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._hashing, self._disk):
            pool.shutdown(cancel_futures=True)
        self._flusher.close()

    @property
    def nbytes(self) -> int:
        """The bytes so far."""
        return self._offset + self._filled

    def space(self, least: int) -> Array:
        """Memory for the next bytes, at least `least` of them. It holds until `wrote` is called.

        Raises: ValueError for more than a buffer has; OSError of an earlier write.
        """
        if least > _BLOCK_BYTES:
            raise ValueError(f"{least} bytes at once, a buffer has {_BLOCK_BYTES}")
        if self._filled + least > _BLOCK_BYTES + _PAGE:
            self._hand_over(self._filled // _PAGE * _PAGE)
        return self._buffers[self._number][self._filled : _BLOCK_BYTES + _PAGE]

    def wrote(self, count: int) -> None:
        """Takes the first `count` bytes of `space` as the file's next."""
        self._filled += count

    def finish(self) -> str:
        """The file's sha256, after all of it is on the disk. Raises: OSError."""
        size = self.nbytes
        rest = -self._filled % _PAGE
        self._buffers[self._number][self._filled : self._filled + rest] = 0
        self._hand_over(self._filled + rest)
        for each in self._work:
            _wait(each)
        self._flusher.finish()
        os.ftruncate(self._descriptor, size)
        os.fsync(self._descriptor)
        return self._sha256.hexdigest()

    def _hand_over(self, count: int) -> None:
        """Has the new bytes of this buffer hashed and its first `count` written, and goes on to the next."""
        full, filled = self._buffers[self._number], self._filled
        self._work[self._number] = [
            self._hashing.submit(self._sha256.update, full[self._carried : filled].data),
            self._disk.submit(self._write, full[:count].data, self._offset),
        ]
        self._number = (self._number + 1) % len(self._buffers)
        _wait(self._work[self._number])
        self._work[self._number] = []
        self._carried = self._filled = max(filled - count, 0)
        self._buffers[self._number][: self._filled] = full[count:filled]
        self._offset += count

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            try:
                count = os.pwrite(self._descriptor, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                # The file system took the flag, and cannot do it, or not with pages of this size.
                self._direct = _set_direct(self._descriptor, False)
                continue
            data, offset = data[count:], offset + count
            if not self._direct:
                self._flusher.wrote(count)


class _Flusher:
    """Brings what was written to the disk on the way, so that the last flush has little left to wait for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._new = descriptor, 0
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def close(self) -> None:
        self._pool.shutdown()

    def wrote(self, count: int) -> None:
        """Counts bytes, and begins a flush after each _FLUSH_BYTES, unless the one before still runs.

        Raises: OSError of the flush before.
        """
        self._new += count
        if self._new >= _FLUSH_BYTES and (self._running is None or self._running.done()):
            self.finish()
            self._new = 0
            self._running = self._pool.submit(os.fdatasync, self._descriptor)

    def finish(self) -> None:
        """Waits for the flush that runs. Raises: OSError."""
        if self._running is not None:
            self._running.result()


def _set_direct(descriptor: int, wanted: bool) -> bool:
    """Whether writes go past the page cache now, after that was asked for, or ended."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | direct if wanted else flags & ~direct)
    except OSError:
        return False
    return wanted and bool(direct)


def _pages(count: int) -> Array:
    """`count` bytes that begin at a page. Large pages cost less to hand to the disk."""
    memory = mmap.mmap(-1, count)
    # A kernel may have none of them.
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _wait(work: list[Future[None]]) -> None:
    for each in work:
        each.result()
