"""Writes a safetensors file tensor by tensor: the header first, then each tensor's bytes as they come.

Memory holds the tensor that is written, and a block of it in the file's type. The sha256 of the file is made
on the way, in a thread of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorstore as ts

from harness.checkpoint.safetensors import NAMES
from harness.units import MIB

Array = np.ndarray[Any, Any]
Dtype = Literal["bfloat16", "float32"]
Progress = Callable[[int, int], None]
_BLOCK_BYTES = 32 * MIB
_FLUSH_BYTES = 256 * MIB
# Offsets of the format are counted from the end of the header, whose length is a multiple of this.
_ALIGNMENT = 8
_AHEAD = 2


class Planned(NamedTuple):
    """A tensor that the header names before its elements are known."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Written(NamedTuple):
    """Size and digest of a finished file."""

    nbytes: int
    sha256: str


def write_tensors(
    path: Path,
    planned: list[Planned],
    arrays: Iterable[tuple[str, Array]],
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Writes the new file `path`: the `arrays` in the `planned` order, cast to their types.

    `progress` is told the bytes written, and all bytes.
    Raises: ValueError if the arrays are not those that were planned; OSError as `write`.
    """
    header = _header(planned, metadata)
    total, done = len(header) + sum(each.nbytes for each in planned), len(header)
    sha256 = hashlib.sha256()
    with (
        path.open("xb", buffering=0) as file,
        ThreadPoolExecutor(1) as hashing,
        ThreadPoolExecutor(1) as disk,
        _Flusher(file.fileno()) as flusher,
    ):
        work = [(hashing.submit(sha256.update, header), disk.submit(_write, file, memoryview(header)))]
        for block in _blocks(planned, arrays):
            data = memoryview(block.reshape(-1).view(np.uint8).data)
            # While one block is hashed and written, the next one is made.
            work.append((hashing.submit(sha256.update, data), disk.submit(_write, file, data)))
            if len(work) > _AHEAD:
                _finish(work.pop(0))
            done += len(data)
            flusher.wrote(len(data))
            if progress is not None:
                progress(done, total)
        for each in work:
            _finish(each)
        flusher.finish()
        os.fsync(file.fileno())
    return Written(done, sha256.hexdigest())


class _Flusher:
    """Brings what was written to the disk on the way, so that the last flush has little left to wait for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._new = descriptor, 0
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, *_: object) -> None:
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


def _write(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _finish(work: tuple[Future[None], Future[None]]) -> None:
    for each in work:
        each.result()


def _header(planned: list[Planned], metadata: Mapping[str, str] | None) -> bytes:
    body: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for each in planned:
        body[each.name] = {
            "dtype": NAMES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [end, end + each.nbytes],
        }
        end += each.nbytes
    text = json.dumps(body, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _blocks(planned: list[Planned], arrays: Iterable[tuple[str, Array]]) -> Iterator[Array]:
    """The elements of each array in C order and in the planned type, in blocks of about 32 MiB."""
    given = iter(arrays)
    for want in planned:
        name, array = next(given, ("nothing", np.empty(0)))
        if (name, array.shape) != (want.name, want.shape):
            raise ValueError(f"{name} {array.shape} instead of {want.name} {want.shape}")
        dtype = np.dtype(want.dtype)
        rows = max(1, _BLOCK_BYTES * max(len(array), 1) // max(array.nbytes, 1)) if array.ndim else 1
        same: Array | None = None
        for start in range(0, len(array), rows) if array.ndim else (0,):
            block = array[start : start + rows] if array.ndim else array
            if same is None or same.shape != block.shape:
                made = cast(np.ascontiguousarray(block), dtype)
                # One number, seen at each index, gives the same block again.
                same = None if any(array.strides) else made
            else:
                made = same
            yield made
        del array
    if next(given, None) is not None:
        raise ValueError("more arrays than were planned")


def cast(block: Array, dtype: np.dtype[Any]) -> Array:
    """`block` as `dtype`, rounded to the nearest; tensorstore is three times as fast as numpy at it."""
    if block.dtype == dtype:
        return block
    return np.asarray(ts.cast(ts.array(block), ts.dtype(dtype.name)).read().result())
