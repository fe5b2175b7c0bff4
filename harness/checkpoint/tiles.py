"""Tiles: the cells of a grid over an array that several processes saved in parts, each with its digest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Slices = tuple[slice, ...]


class Tiled(NamedTuple):
    """A leaf's digests by tile. `grid`: tiles along each axis. `sha256`: those of the tiles in C order."""

    grid: list[int]
    sha256: list[str]


def tiled_from(value: Any) -> Tiled:
    """The tiles as a sidecar has them, which may be a stranger's.

    Raises: ValueError, LookupError, TypeError.
    """
    grid, digests = [int(count) for count in value["grid"]], [str(one) for one in value["sha256"]]
    if any(count < 1 for count in grid) or math.prod(grid) != len(digests):
        raise ValueError("a grid has as many cells as there are digests")
    return Tiled(grid, digests)


def cells(shape: tuple[int, ...], grid: list[int]) -> Iterator[Slices]:
    """The tiles of an array of `shape`, in C order."""
    for index in np.ndindex(*grid):
        yield tuple(
            slice(i * size // count, (i + 1) * size // count)
            for i, size, count in zip(index, shape, grid, strict=True)
        )


def tiles_of(shape: tuple[int, ...], tiled: Tiled) -> list[tuple[Slices, str]]:
    """(tile, its digest), in C order.

    Raises: ValueError if the grid is not one of an array of `shape`.
    """
    if len(shape) != len(tiled.grid):
        raise ValueError(f"a grid {tiled.grid} for an array {shape}")
    return list(zip(cells(shape, tiled.grid), tiled.sha256, strict=True))


def tile_digest(array: np.ndarray[Any, Any]) -> str:
    """The sha256 of a tile's elements in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def bounds(index: Slices, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Begin and end of `index` along each axis of an array of `shape`."""
    return tuple(
        (part.start or 0, size if part.stop is None else part.stop)
        for part, size in zip(index, shape, strict=True)
    )
