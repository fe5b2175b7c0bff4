"""Streams the arrays of an item: non-finite counts, norms and digests, a few MiB at a time whatever the size of a leaf."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import LeafReport
from harness.checkpoint.item import Array, Item

# Elements converted to float64 at a time.
BLOCK = 2**22


class Health(NamedTuple):
    """`squares` is the sum of squares of the finite elements, in float64; None for codes, which are not values. `sha256` is that of the elements as stored."""

    non_finite: int
    squares: float | None
    sha256: str

    @property
    def norm(self) -> float | None:
        return None if self.squares is None else math.sqrt(self.squares)


def stream(item: Item) -> Iterator[tuple[Array, Health | None]]:
    """(array, its health) for each array of the item; None where the data cannot be read."""
    for array in item.arrays.values():
        try:
            yield array, _health(blocks(item, array), holds_values(array.dtype))
        except (ValueError, OSError):
            yield array, None


def blocks(item: Item, array: Array) -> Iterator[np.ndarray]:
    """The elements of an array in C order, flat, `BLOCK` at a time.

    Raises: ValueError or OSError when the data cannot be read.
    """
    import tensorstore as ts

    from harness.checkpoint.chunks import pieces

    base = item.directory.absolute().as_uri() + "/"
    inside_ocdbt = (item.directory / "manifest.ocdbt").is_file()
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{array.name}/"} if inside_ocdbt else f"{base}{array.name}/"
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    store: Any = ts.open({"driver": "zarr3" if array.zarr3 else "zarr", "kvstore": kvstore}, open=True, read=True, context=context).result()
    return pieces(store, BLOCK)


def holds_values(dtype: str) -> bool:
    """Whether elements of this dtype are numbers of the network; integers are codes, counters or indices."""
    return dtype.startswith(("float", "bfloat"))


def _health(parts: Iterator[np.ndarray], values: bool) -> Health:
    digest = hashlib.sha256()
    non_finite, squares = 0, 0.0
    for part in parts:
        digest.update(part.view(np.uint8).data)
        if not values:
            continue
        block = part.astype(np.float64)
        square = float(np.dot(block, block))
        if not math.isfinite(square):
            finite = block[np.isfinite(block)]
            non_finite += block.size - finite.size
            square = float(np.dot(finite, finite))
        squares += square
    return Health(non_finite, squares if values else None, digest.hexdigest())


def leaf_reports(name: str, item: Item, health: dict[str, Health | None]) -> list[LeafReport]:
    """One report an array of the item called `name`."""
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
