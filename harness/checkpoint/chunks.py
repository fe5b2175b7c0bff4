"""Reads one zarr array in pieces and casts it on the way.

Tensorstore decodes a chunk whole and then copies it. A leaf stored as one chunk (Orbax's default) would need
twice its size in host memory, and the kernel's work for fresh memory takes longer than unpacking. So a zstd
chunk of consecutive elements is unpacked as a stream into its place, and other grids are read slab by slab.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import tensorstore as ts

from harness.checkpoint.header import chunk_bytes
from harness.checkpoint.packed import check_length, check_unpacked
from harness.checkpoint.stored import Stored
from harness.units import GIB, KIB, MIB

LARGE_BYTES = 256 * MIB
PIECE_BYTES = 64 * MIB
# What is read of a file at a time.
_RANGE_BYTES = 256 * KIB
_SLAB_BYTES = GIB
_THREADS = 4
# From here on a stream costs less than tensorstore's buffers.
STREAMED_BYTES = 8 * MIB

Array = np.ndarray[Any, Any]


def read_array(source: Stored, dtype: np.dtype[Any]) -> Array:
    """The elements of `source` as `dtype`. For a large array only a few more pieces are in memory.

    Raises: ValueError, OSError or UnsafeFile if the data is damaged.
    """
    store, header = source.store, source.header
    small, in_runs = source.nbytes <= LARGE_BYTES, header.is_runs and source.nbytes > STREAMED_BYTES
    if small or (in_runs and not header.is_one_stream):
        source.check()
    if small and not in_runs:
        return np.asarray(cast(store, dtype).read().result())
    out = np.empty(store.shape, dtype)
    if header.is_runs:
        _read_runs(source, out.reshape(-1))
    else:
        _read_slabs(source, out)
    return out


def read_part(source: Stored, part: tuple[slice, ...], dtype: np.dtype[Any]) -> Array:
    """The elements of `part`, which names begin and end along every axis, as `dtype`.

    Raises: as `read_array`.
    """
    source.check(part)
    found: Array = np.asarray(cast(source.store, dtype)[part].read().result())
    return found


def cast(store: Any, dtype: np.dtype[Any]) -> Any:
    """`store` as `dtype`; tensorstore's cast to bfloat16 is three times as fast as numpy's."""
    target = ts.dtype(dtype.name)
    return store if store.dtype == target else ts.cast(store, target)


def _read_runs(source: Stored, out: Array) -> None:
    """Fills the flat `out`, a few chunks at a time, each piece by piece."""
    header = source.header
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for _ in pool.map(
                lambda index: read_run(source, index, out[header.run(index)]), np.ndindex(*header.grid)
            ):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def read_run(source: Stored, index: tuple[int, ...], out: Array, *, to_its_end: bool = False) -> None:
    """Fills the flat `out` with the first elements of the chunk at `index`, which is a run.

    `to_its_end`: the chunk was not checked, and is refused if it has more than a chunk's elements.
    Raises: ValueError, OSError or UnsafeFile if the data is damaged.
    """
    with Stream(source, index) as stream:
        stream.read(out)
        if to_its_end:
            stream.end(out.size)


class Stream:
    """The elements of a chunk that is a run, one after the other."""

    def __init__(self, source: Stored, index: tuple[int, ...]) -> None:
        self._dtype = np.dtype(source.store.dtype.numpy_dtype)
        self._expected = chunk_bytes(source.header)
        chunk = _Chunk(source, index)
        self._length = chunk.left
        # Its own buffer: a decompressor asks for 64 KiB at a time, and each time for Python's lock.
        packed = pa.BufferedInputStream(pa.PythonFile(chunk, mode="r"), _RANGE_BYTES)
        self._stream = pa.CompressedInputStream(packed, source.header.codec)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, out: Array) -> None:
        """Fills the flat `out`, cast to its type.

        Raises: ValueError or OSError if the data is damaged.
        """
        step = PIECE_BYTES // self._dtype.itemsize
        for start in range(0, out.size, step):
            target = out[start : start + step]
            piece = target if self._dtype == out.dtype else np.empty(target.size, self._dtype)
            _read_into(self._stream, piece.view(np.uint8))
            if piece is not target:
                target[:] = cast(ts.array(piece), out.dtype).read().result()

    def end(self, count: int) -> None:
        """Refuses more than a chunk's elements, after `count` were read. Raises: ValueError or OSError."""
        check_length(self._length, self._expected)
        # A chunk at an edge of its array is stored whole.
        unpacked, piece = count * self._dtype.itemsize, np.empty(MIB, np.uint8)
        while n := self._stream.readinto(piece):
            unpacked += n
            check_unpacked(unpacked, self._expected)


def _read_into(stream: Any, view: Array) -> None:
    filled = 0
    while filled < view.size:
        n = stream.readinto(view[filled:])
        if not n:
            raise ValueError(f"the data ends at least {view.size - filled} bytes early")
        filled += n


class _Chunk(io.RawIOBase):
    """A chunk's bytes on disk as a file. tensorstore would walk the index anew for each range."""

    def __init__(self, source: Stored, index: tuple[int, ...]) -> None:
        self._file, self.left = source.packed(index)
        self._buffer = memoryview(bytearray(min(_RANGE_BYTES, self.left)))

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> Any:
        """At most `size` bytes, which hold until the next call; empty at the end."""
        size = min(len(self._buffer), self.left, self.left if size < 0 else size)
        n: int = self._file.readinto(self._buffer[:size])  # type: ignore[attr-defined]
        self.left -= n
        return self._buffer[:n]

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _read_slabs(source: Stored, out: Array) -> None:
    """Fills `out` along the first axis that the chunk grid divides, two slabs in flight."""
    store = source.store
    chunk = store.chunk_layout.read_chunk.shape
    axis = next(
        (i for i, (size, whole) in enumerate(zip(chunk, store.shape, strict=True)) if size < whole), 0
    )
    row_bytes = math.prod(store.shape) // store.shape[axis] * out.dtype.itemsize
    step = chunk[axis] * max(PIECE_BYTES // (row_bytes * chunk[axis]), 1)
    before = (slice(None),) * axis
    slabs = [
        (*before, slice(start, min(start + step, store.shape[axis])))
        for start in range(0, store.shape[axis], step)
    ]
    view = cast(store, out.dtype)

    def begin(slab: tuple[slice, ...]) -> Any:
        source.check(slab)
        return view[slab].read()

    reading = begin(slabs[0])
    for slab, following in zip(slabs, [*slabs[1:], None], strict=True):
        ahead = begin(following) if following else None
        out[slab] = reading.result()
        reading = ahead


def pieces(source: Stored, elements: int = 2**22) -> Iterator[Array]:
    """All elements of `source` in C order, in flat arrays of `elements` (the last may be shorter).

    The pieces do not depend on the chunks. Beside a piece at most a row of chunks is in memory. If a row
    exceeds 1 GiB, 1 GiB of it is, and chunks are unpacked more than once.
    Raises: ValueError, OSError or UnsafeFile if the data is damaged.
    """
    store = source.store
    dtype = np.dtype(store.dtype.numpy_dtype)
    size = math.prod(store.shape)
    if size * dtype.itemsize > PIECE_BYTES and source.header.is_one_stream:
        with Stream(source, (0,) * len(store.shape)) as stream:
            for start in range(0, size, elements):
                piece = np.empty(min(elements, size - start), dtype)
                stream.read(piece)
                yield piece
        return
    piece, filled = np.empty(min(elements, size), dtype), 0
    for slab in c_order_slabs(
        source.header.shape, source.header.inner or source.header.chunk, dtype.itemsize
    ):
        source.check(slab)
        flat = np.ascontiguousarray(store[slab].read().result()).reshape(-1)
        while flat.size:
            taken = min(flat.size, piece.size - filled)
            piece[filled : filled + taken] = flat[:taken]
            flat, filled, size = flat[taken:], filled + taken, size - taken
            if filled == piece.size:
                yield piece
                piece, filled = np.empty(min(elements, size), dtype), 0


def c_order_slabs(
    shape: tuple[int, ...], chunk: tuple[int, ...], one_bytes: int, before: tuple[slice, ...] = ()
) -> Iterator[tuple[slice, ...]]:
    """Slabs below `before` that follow each other in C order.

    Each is made of whole chunks, unless these would exceed 1 GiB.
    """
    axis = len(before)
    if axis == len(shape):
        yield before
        return
    row_bytes = math.prod(shape[axis + 1 :]) * one_bytes
    fits = row_bytes * chunk[axis] <= _SLAB_BYTES
    step = chunk[axis] if fits else max(_SLAB_BYTES // row_bytes, 1)
    for start in range(0, shape[axis], step):
        slab = (*before, slice(start, min(start + step, shape[axis])))
        # A first axis of one row is not cut by any chunk. A row that is too large is cut along the next axis.
        if shape[axis] == 1 or (step == 1 and row_bytes > _SLAB_BYTES):
            yield from c_order_slabs(shape, chunk, one_bytes, slab)
        else:
            yield slab
