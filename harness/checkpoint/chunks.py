"""Reads one zarr array in pieces and casts it on the way.

No chunk is unpacked before its unpacked size is known.

Tensorstore decodes a chunk whole and then copies it. A leaf stored as one chunk (Orbax's default) would need
twice its size in host memory, and the kernel's work for fresh memory takes longer than unpacking. So a zstd
chunk of consecutive elements is unpacked as a stream into its place, and other grids are read slab by slab.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import tensorstore as ts

from harness.checkpoint.format import Location
from harness.checkpoint.header import Header, chunk_bytes, itemsize, shard_index
from harness.checkpoint.item import Array as ItemArray
from harness.checkpoint.item import Item, Value
from harness.checkpoint.packed import check_packed
from harness.received.files import open_received
from harness.units import GIB, MIB

LARGE_BYTES = 256 * MIB
PIECE_BYTES = 64 * MIB
# Larger buffers are fresh memory each time, whose pages cost more than unpacking.
_RANGE_BYTES = MIB
_SLAB_BYTES = GIB
_THREADS = 4
# From here on a stream costs less than tensorstore's buffers.
_STREAMED_BYTES = 8 * MIB

Array = np.ndarray[Any, Any]


class Stored:
    """An array of an item, open for reading: tensorstore's `store` and the checked `header`."""

    def __init__(
        self, store: Any, header: Header, directory: Path, chunks: Mapping[tuple[int, ...], Value]
    ) -> None:
        self.store, self.header, self._directory = store, header, directory
        # The first axis that is cut into chunks. Its rows of chunks are checked one after the other, each
        # once.
        self._axis = next((axis for axis, count in enumerate(header.grid) if count > 1), None)
        self._unchecked: dict[int, list[Value]] = defaultdict(list)
        for index, value in chunks.items():
            self._unchecked[0 if self._axis is None else index[self._axis]].append(value)

    @property
    def nbytes(self) -> int:
        return math.prod(self.header.shape) * itemsize(self.header.dtype)

    def check(self, slab: tuple[slice, ...] = ()) -> None:
        """Refuses chunks that hold elements of `slab` and unpack to more than a chunk's size.

        Raises: ValueError; OSError or UnsafeFile if one of their files cannot be opened.
        """
        if self._axis is None or len(slab) <= self._axis or slab[self._axis].stop is None:
            rows = list(self._unchecked)
        else:
            cut = self.header.chunk[self._axis]
            rows = list(range(slab[self._axis].start // cut, -(-slab[self._axis].stop // cut)))
        for row in rows:
            for value in self._unchecked.pop(row, ()):
                self._check_chunk(value)

    def _check_chunk(self, value: Value) -> None:
        if isinstance(value, bytes):
            check_chunk(self.header, io.BytesIO(value), Location("", 0, len(value)))
            return
        with open_received(self._directory / value.file, self._directory) as file:
            check_chunk(self.header, file, value)


def check_chunk(header: Header, file: BinaryIO, location: Location) -> None:
    """Refuses a chunk, or a shard of chunks, that unpacks to more than its size.

    Raises: ValueError.
    """
    expected = chunk_bytes(header)
    if header.inner is None:
        file.seek(location.offset)
        check_packed(file, location.length, header.codec, expected)
        return
    count = math.prod(-(-c // i) for c, i in zip(header.chunk, header.inner, strict=True))
    size = 16 * count + (4 if header.index_checksum else 0)
    if size > location.length:
        raise ValueError("a shard is cut off")
    file.seek(location.end - size if header.index_at_end else location.offset)
    for offset, length in shard_index(file.read(16 * count)):
        if offset + length > location.length:
            raise ValueError("a shard names bytes behind its end")
        file.seek(location.offset + offset)
        check_packed(file, length, header.codec, expected)


def opening(item: Item, array: ItemArray, context: ts.Context) -> Any:
    """The future of tensorstore's view of an array of `item`. Only metadata is read.

    Raises: ValueError if the item leads out of its directory; nothing of it is opened then.
    """
    if item.leads_out:
        raise ValueError("its item leads out of its directory")
    base = directory_url(item.directory)
    inside = {"driver": "ocdbt", "base": base, "path": f"{array.name}/"}
    kvstore = (
        inside if item.in_ocdbt else {"driver": "file", "path": f"{item.directory.absolute() / array.name}/"}
    )
    return ts.open(
        {"driver": "zarr3" if array.header.zarr3 else "zarr", "kvstore": kvstore},
        open=True,
        read=True,
        context=context,
    )


def stored(item: Item, array: ItemArray, store: Any) -> Stored:
    """The array, ready to be read, once `opening` is done.

    Raises: ValueError if tensorstore reads another shape than the item's metadata has.
    """
    if tuple(store.shape) != array.shape:
        raise ValueError(f"shape {tuple(store.shape)}, not {array.shape}")
    return Stored(store, array.header, item.directory, array.chunks)


def open_context() -> ts.Context:
    """A tensorstore context without a cache."""
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def directory_url(directory: Path) -> str:
    """The directory as tensorstore's file URL."""
    return directory.absolute().as_uri() + "/"


def read_array(source: Stored, dtype: np.dtype[Any]) -> Array:
    """The elements of `source` as `dtype`. For a large array only a few more pieces are in memory.

    Raises: ValueError, OSError or UnsafeFile if the data is damaged.
    """
    store, header = source.store, source.header
    small, in_runs = source.nbytes <= LARGE_BYTES, header.is_runs and source.nbytes > _STREAMED_BYTES
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
                lambda index: _read_stream(source, index, out[header.run(index)]), np.ndindex(*header.grid)
            ):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _read_stream(source: Stored, index: tuple[int, ...], out: Array) -> None:
    """Fills the flat `out` with the first elements of the chunk at `index`."""
    dtype = np.dtype(source.store.dtype.numpy_dtype)
    step = PIECE_BYTES // dtype.itemsize
    with _stream(source, index) as stream:
        for start in range(0, out.size, step):
            target = out[start : start + step]
            piece = target if dtype == out.dtype else np.empty(target.size, dtype)
            _read_into(stream, piece.view(np.uint8))
            if piece is not target:
                target[:] = cast(ts.array(piece), out.dtype).read().result()


def _stream(source: Stored, index: tuple[int, ...]) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(_Chunk(source, index), mode="r"), source.header.codec)


def _read_into(stream: Any, view: Array) -> None:
    filled = 0
    while filled < view.size:
        n = stream.readinto(view[filled:])
        if not n:
            raise ValueError(f"the data ends at least {view.size - filled} bytes early")
        filled += n


class _Chunk(io.RawIOBase):
    """A chunk's bytes on disk as a file. The next range is fetched while the current one is used."""

    def __init__(self, source: Stored, index: tuple[int, ...]) -> None:
        self._kvstore = source.store.kvstore
        self._key = source.header.key(index)
        self._offset = 0
        self._here = memoryview(b"")
        self._next = self._fetch()

    def _fetch(self) -> Any:
        return self._kvstore.read(self._key, byte_range=slice(self._offset, self._offset + _RANGE_BYTES))

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes (the decompressor's buffer holds no more); empty at the end."""
        if not self._here and self._next is not None:
            self._here = memoryview(self._range())
        taken = self._here if size < 0 else self._here[:size]
        self._here = self._here[len(taken) :]
        return bytes(taken)

    def _range(self) -> bytes:
        try:
            data: bytes = self._next.result().value
        except ValueError as error:
            if "OUT_OF_RANGE" not in str(error):
                raise
            # A range may not reach past the end. What is left is less than one range.
            self._next = None
            rest: bytes = self._kvstore.read(self._key, byte_range=slice(self._offset, None)).result().value
            return rest
        self._offset += len(data)
        self._next = self._fetch()
        return data


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
        with _stream(source, (0,) * len(store.shape)) as stream:
            for start in range(0, size, elements):
                piece = np.empty(min(elements, size - start), dtype)
                _read_into(stream, piece.view(np.uint8))
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
