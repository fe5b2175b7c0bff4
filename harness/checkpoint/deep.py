"""Streams the arrays of an item to count non-finite values and to compute norms and digests.

A few MiB are in memory at a time, whatever the size of a leaf.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from harness.artifacts import LeafReport
from harness.artifacts.checkpoint import VALUE_DTYPES
from harness.checkpoint.format import DAMAGE
from harness.checkpoint.item import Array, Item
from harness.checkpoint.tiles import Tiled, tile_digest, tiles_of
from harness.received.files import UnsafeFile

# Elements converted to float64 at a time.
BLOCK = 2**22
# Errors that end the reading of one array, but not the report on the others.
UNREADABLE = (OSError, UnsafeFile, MemoryError, *DAMAGE)


class Health(NamedTuple):
    """The health of one array.

    `squares` is the sum of squares of the finite elements, in float64, which may overflow to infinity. It is
    None for codes, which are not values. `sha256` is that of the elements as stored.
    """

    non_finite: int
    squares: float | None
    sha256: str

    @property
    def norm(self) -> float | None:
        return None if self.squares is None else root(self.squares)


def root(square: float) -> float | None:
    """The square root; None if `square` is not finite, as the sum of squares of large values may be."""
    return math.sqrt(square) if math.isfinite(square) else None


def total(values: Iterable[float]) -> float:
    """The sum of values that are not negative; infinity if it is beyond float64."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def stream(item: Item) -> Iterator[tuple[Array, Health | None]]:
    """(array, its health) for each array of the item; None if the data cannot be read."""
    for array in item.arrays.values():
        try:
            yield array, health_of(blocks(item, array), values=holds_values(array.dtype))
        except UNREADABLE:
            yield array, None


def blocks(item: Item, array: Array) -> Iterator[np.ndarray]:
    """The elements of an array in C order, flat, `BLOCK` at a time.

    Raises: one of `UNREADABLE` if the data cannot be read, or if the item leads out of its directory.
    """
    from harness.checkpoint.chunks import pieces
    from harness.checkpoint.stored import open_context, opening, stored

    return pieces(stored(item, array, opening(item, array, open_context()).result()), BLOCK)


def holds_values(dtype: str) -> bool:
    """Whether elements of this dtype are numbers of the network; integers are codes, counters or indices."""
    return dtype.startswith(VALUE_DTYPES)


def health_of(parts: Iterable[np.ndarray], *, values: bool) -> Health:
    """The health of an array given in flat `parts`. `values`: its elements are numbers of the network."""
    digest = hashlib.sha256()
    non_finite, squares = 0, 0.0
    for part in parts:
        digest.update(part.view(np.uint8).data)
        if not values:
            continue
        # This code searches for NaN, so numpy should not warn of it.
        with np.errstate(invalid="ignore", over="ignore"):
            block = part.astype(np.float64)
            square = float(np.dot(block, block))
        if not math.isfinite(square):
            finite = block[np.isfinite(block)]
            non_finite += block.size - finite.size
            with np.errstate(over="ignore"):
                square = float(np.dot(finite, finite))
        squares += square
    return Health(non_finite, squares if values else None, digest.hexdigest())


def is_changed(item: Item, array: Array, tiled: Tiled) -> bool:
    """Whether a tile of an array is not the one that was saved.

    Raises: one of `UNREADABLE` if the data cannot be read.
    """
    from harness.checkpoint.chunks import read_part
    from harness.checkpoint.stored import open_context, opening, stored

    source = stored(item, array, opening(item, array, open_context()).result())
    dtype = np.dtype(source.store.dtype.numpy_dtype)
    return any(
        tile_digest(read_part(source, cell, dtype)) != digest for cell, digest in tiles_of(array.shape, tiled)
    )


def leaf_reports(name: str, item: Item, health: dict[str, Health | None]) -> list[LeafReport]:
    """One report for each array of the item called `name`."""
    reports = []
    for path, array in item.arrays.items():
        found = health[path]
        reports.append(
            LeafReport(
                item=name,
                path=path,
                dtype=array.dtype,
                shape=list(array.shape),
                sha256=found.sha256 if found else None,
                non_finite=found.non_finite if found else None,
                norm=found.norm if found else None,
                missing_chunks=item.missing.get(path, 0),
            )
        )
    return reports
