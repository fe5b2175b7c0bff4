"""Reads an array from where it lies, one piece at a time, into memory that is free again with the piece.

`np.asarray` of a jax.Array on a GPU copies all of it to the host, and the array keeps that copy for as long
as it lives. A piece is therefore cut out first, by a program of its own, and only the piece is copied. An
array in pinned host memory is read by the device, as the training step reads it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from harness.checkpoint.format import CHUNK_BYTES
from harness.checkpoint.tiles import Slices, bounds


class MadeRows:
    """A leaf that is made when it is read, some rows of its first axis at a time.

    `make(start, stop)` makes the rows from `start` to `stop`; `rows` are made together.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rows: int,
        make: Callable[[int, int], np.ndarray[Any, Any]],
    ) -> None:
        self.shape, self.dtype, self.rows, self.make = shape, dtype, rows, make

    def groups(self) -> Iterator[tuple[int, int]]:
        """The rows that are made together: (start, stop)."""
        for start in range(0, self.shape[0], self.rows):
            yield start, min(start + self.rows, self.shape[0])


def piece(data: jax.Array, index: Slices) -> np.ndarray[Any, Any]:
    """data[index] of an array on one device, or in its pinned host memory. Nothing of it stays behind."""
    edges = bounds(index, data.shape)
    starts = tuple(np.int32(low) for low, _ in edges)
    return np.asarray(_cut(data, starts, tuple(high - low for low, high in edges)))


@functools.partial(jax.jit, static_argnums=2)
def _cut(data: jax.Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> jax.Array:
    cut = jax.lax.dynamic_slice(data, starts, sizes)
    return jax.device_put(cut, jax.memory.Space.Device)


def parts_in_order(leaf: Any, most_bytes: int = CHUNK_BYTES) -> Iterator[np.ndarray[Any, Any]]:
    """A leaf that is whole in this process, part after part in C order.

    A number, or an array of numpy, is one part.
    """
    if isinstance(leaf, MadeRows):
        yield from itertools.starmap(leaf.make, leaf.groups())
        return
    if not isinstance(leaf, jax.Array):
        yield np.asarray(leaf)
        return
    held = {bounds(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
    for part in in_order(leaf.shape, leaf.dtype.itemsize, most_bytes):
        if len(held) == 1:
            yield piece(next(iter(held.values())), part)
            continue
        out = np.empty([at.stop - at.start for at in part], leaf.dtype)
        for edges, data in held.items():
            both = [
                (max(low, at.start), min(high, at.stop)) for (low, high), at in zip(edges, part, strict=True)
            ]
            if all(low < high for low, high in both):
                here = tuple(
                    slice(low - begin, high - begin)
                    for (low, high), (begin, _) in zip(both, edges, strict=True)
                )
                there = tuple(
                    slice(low - at.start, high - at.start) for (low, high), at in zip(both, part, strict=True)
                )
                out[there] = piece(data, here)
        yield out


def in_order(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> Iterator[Slices]:
    """Parts of an array of `shape` that follow each other in C order, each of at most `most_bytes`.

    One element is never cut, whatever its size.
    """
    if math.prod(shape) * itemsize <= most_bytes or not shape:
        yield tuple(slice(0, size) for size in shape)
        return
    rows = most_bytes // (math.prod(shape[1:]) * itemsize)
    for start in range(0, shape[0], max(rows, 1)):
        first = slice(start, min(start + max(rows, 1), shape[0]))
        if rows:
            yield (first, *(slice(0, size) for size in shape[1:]))
        else:
            yield from ((first, *rest) for rest in in_order(shape[1:], itemsize, most_bytes))
