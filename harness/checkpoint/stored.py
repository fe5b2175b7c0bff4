"""Opens one zarr array of an item: what tensorstore reads of it, and where its packed chunks lie.

No chunk is unpacked before its unpacked size is known, or further than to a chunk's size.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import tensorstore as ts

from harness.checkpoint.format import Location
from harness.checkpoint.header import Header, chunk_bytes, itemsize, shard_index
from harness.checkpoint.item import Array as ItemArray
from harness.checkpoint.item import Item, Value
from harness.checkpoint.packed import check_packed
from harness.received.files import open_received


class Stored:
    """An array of an item, open for reading: tensorstore's `store` and the checked `header`."""

    def __init__(
        self, store: Any, header: Header, directory: Path, chunks: Mapping[tuple[int, ...], Value]
    ) -> None:
        self.store, self.header, self._directory, self._chunks = store, header, directory, chunks
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

    def packed(self, index: tuple[int, ...]) -> tuple[BinaryIO, int]:
        """(a file at the first byte of the chunk at `index`, how many bytes the chunk has there).

        Raises: OSError or UnsafeFile if its file cannot be opened.
        """
        value = self._chunks.get(index, b"")
        if isinstance(value, bytes):
            return io.BytesIO(value), len(value)
        file = open_received(self._directory / value.file, self._directory)
        file.seek(value.offset)
        return file, value.length

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
