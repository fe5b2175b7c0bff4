"""Streams the arrays of an item: non-finite counts and norms, holding one chunk, at most one leaf, at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from harness.checkpoint.item import Array, Item

# Converted to float64 in blocks of this many elements, so that a 4.5 GiB leaf does not need 9 GiB more.
BLOCK = 2**22


class Health(NamedTuple):
    """`squares` is the sum of squares of the finite elements, in float64."""

    non_finite: int
    squares: float

    @property
    def norm(self) -> float:
        return math.sqrt(self.squares)


def stream(item: Item) -> Iterator[tuple[Array, Health | None]]:
    """(array, its health) for each array of the item; None where the data cannot be read."""
    for array in item.arrays.values():
        try:
            store = _open(item, array)
            parts = [_health(store[chunk].read().result()) for chunk in _chunks(store)]
        except ValueError:
            yield array, None
            continue
        yield array, Health(sum(part.non_finite for part in parts), math.fsum(part.squares for part in parts))


def _open(item: Item, array: Array) -> Any:
    import tensorstore as ts

    base = item.directory.absolute().as_uri() + "/"
    inside_ocdbt = (item.directory / "manifest.ocdbt").is_file()
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{array.name}/"} if inside_ocdbt else f"{base}{array.name}/"
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    return ts.open({"driver": "zarr3" if array.zarr3 else "zarr", "kvstore": kvstore}, open=True, read=True, context=context).result()


def _chunks(store: Any) -> Iterator[tuple[slice, ...]]:
    """The stored chunks of an array, so that each is decoded once."""
    sizes = store.chunk_layout.read_chunk.shape or store.shape
    ranges = [[slice(start, min(start + size, n)) for start in range(0, n, size)] for n, size in zip(store.shape, sizes, strict=True)]
    return itertools.product(*ranges)


def _health(chunk: Any) -> Health:
    flat = np.asarray(chunk).reshape(-1)
    if flat.dtype.kind in "iub":
        return Health(0, 0.0)
    non_finite, squares = 0, 0.0
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK].astype(np.float64)
        finite = np.isfinite(block)
        bad = block.size - int(np.count_nonzero(finite))
        non_finite += bad
        values = block[finite] if bad else block
        squares += float(np.dot(values, values))
    return Health(non_finite, squares)
