"""Reads one large zarr array in pieces, cast on the way.

Tensorstore decodes a chunk whole, and then copies it: a leaf stored as one chunk (Orbax's default) would need twice its size
in host memory. So a single zstd chunk is decompressed as a stream here, and a grid of chunks is read slab by slab.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import tensorstore as ts

from harness.units import MIB

LARGE_BYTES = 256 * MIB
PIECE_BYTES = 64 * MIB
_RANGE_BYTES = 16 * MIB

Array = np.ndarray[Any, Any]


def read_array(store: Any, dtype: np.dtype[Any]) -> Array:
    """What `store` holds, as `dtype`; beside a large one are a few pieces at most in memory.

    Raises: ValueError or OSError when the data is damaged.
    """
    if math.prod(store.shape) * store.dtype.numpy_dtype.itemsize <= LARGE_BYTES:
        return np.asarray(cast(store, dtype).read().result())
    out = np.empty(store.shape, dtype)
    metadata = store.spec().to_json().get("metadata", {})
    if _is_one_stream(metadata, tuple(store.shape)):
        _read_stream(store, metadata["compressor"]["id"], out.reshape(-1))
        return out
    _read_slabs(store, out)
    return out


def cast(store: Any, dtype: np.dtype[Any]) -> Any:
    """`store` as `dtype`; tensorstore's cast to bfloat16 is three times as fast as numpy's."""
    target = ts.dtype(dtype.name)
    return store if store.dtype == target else ts.cast(store, target)


def _is_one_stream(metadata: dict[str, Any], shape: tuple[int, ...]) -> bool:
    return (
        metadata.get("zarr_format") == 2
        and tuple(metadata["chunks"]) == shape
        and metadata.get("order") == "C"
        and not metadata.get("filters")
        and (metadata["compressor"] or {}).get("id") == "zstd"
        and not str(metadata["dtype"]).startswith(">")
    )


def _read_stream(store: Any, compression: str, out: Array) -> None:
    """Fills the flat `out` from a single-chunk array, piece by piece."""
    dtype = np.dtype(store.dtype.numpy_dtype)
    step = PIECE_BYTES // dtype.itemsize
    with pa.CompressedInputStream(pa.PythonFile(_Chunk(store), mode="r"), compression) as stream:
        for start in range(0, out.size, step):
            target = out[start : start + step]
            piece = target if dtype == out.dtype else np.empty(target.size, dtype)
            _read_into(stream, piece.view(np.uint8))
            if piece is not target:
                target[:] = cast(ts.array(piece), out.dtype).read().result()


def _read_into(stream: Any, view: Array) -> None:
    filled = 0
    while filled < view.size:
        n = stream.readinto(view[filled:])
        if not n:
            raise ValueError(f"the data ends at least {view.size - filled} bytes early")
        filled += n


class _Chunk(io.RawIOBase):
    """A chunk's bytes on disk as a file; the next range is fetched while this one is used."""

    def __init__(self, store: Any) -> None:
        self._kvstore = store.kvstore
        self._key = ".".join("0" * len(store.shape))
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
            # A range may not reach past the end; what is left is less than one range.
            self._next = None
            rest: bytes = self._kvstore.read(self._key, byte_range=slice(self._offset, None)).result().value
            return rest
        self._offset += len(data)
        self._next = self._fetch()
        return data


def _read_slabs(store: Any, out: Array) -> None:
    """Fills `out` along the first axis that the chunk grid divides, two slabs in flight."""
    chunk = store.chunk_layout.read_chunk.shape
    axis = next((i for i, (size, whole) in enumerate(zip(chunk, store.shape, strict=True)) if size < whole), 0)
    row_bytes = math.prod(store.shape) // store.shape[axis] * out.dtype.itemsize
    step = chunk[axis] * max(PIECE_BYTES // (row_bytes * chunk[axis]), 1)
    before = (slice(None),) * axis
    slabs = [(*before, slice(start, min(start + step, store.shape[axis]))) for start in range(0, store.shape[axis], step)]
    source = cast(store, out.dtype)
    reading = source[slabs[0]].read()
    for slab, following in zip(slabs, [*slabs[1:], None], strict=True):
        ahead = source[following].read() if following else None
        out[slab] = reading.result()
        reading = ahead


def pieces(store: Any, elements: int = 2**22) -> Iterator[Array]:
    """All elements of `store` in C order, in flat arrays of `elements` (the last may be shorter): the same however it was chunked.

    At most a row of chunks is in memory beside a piece; a whole leaf only where its chunks cut inner axes alone.
    Raises: ValueError or OSError when the data is damaged.
    """
    dtype = np.dtype(store.dtype.numpy_dtype)
    size = math.prod(store.shape)
    metadata = store.spec().to_json().get("metadata", {})
    if size * dtype.itemsize > PIECE_BYTES and _is_one_stream(metadata, tuple(store.shape)):
        with pa.CompressedInputStream(pa.PythonFile(_Chunk(store), mode="r"), metadata["compressor"]["id"]) as stream:
            for start in range(0, size, elements):
                piece = np.empty(min(elements, size - start), dtype)
                _read_into(stream, piece.view(np.uint8))
                yield piece
        return
    piece, filled = np.empty(min(elements, size), dtype), 0
    for slab in _c_order_slabs(store):
        flat = np.ascontiguousarray(store[slab].read().result()).reshape(-1)
        while flat.size:
            taken = min(flat.size, piece.size - filled)
            piece[filled : filled + taken] = flat[:taken]
            flat, filled, size = flat[taken:], filled + taken, size - taken
            if filled == piece.size:
                yield piece
                piece, filled = np.empty(min(elements, size), dtype), 0


def _c_order_slabs(store: Any) -> Iterator[tuple[slice, ...]]:
    """Slabs along the first axis that is longer than 1, each made of whole chunks."""
    axis = next((i for i, n in enumerate(store.shape) if n != 1), None)
    if axis is None:
        yield ()
        return
    chunk = store.chunk_layout.read_chunk.shape or store.shape
    before = (slice(None),) * axis
    for start in range(0, store.shape[axis], chunk[axis]):
        yield (*before, slice(start, min(start + chunk[axis], store.shape[axis])))
