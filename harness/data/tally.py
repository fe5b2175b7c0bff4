"""Counts of rows from which exact statistics follow, without holding the rows.

Quantiles come from the digits of the float32 values (radix selection), in two passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from harness.data.rows import Block
from harness.data.space import Space

Key = Literal["state", "actions"]
Pass = Literal["first", "second"]

QUANTILES = (0.01, 0.99)
_DIGIT = 1 << 16


class OfDimension(NamedTuple):
    """What a first pass finds of one dimension: `counts` are those of the upper digits."""

    total: int
    sum: float
    low: float
    high: float
    counts: np.ndarray


def chunk_weights(lengths: list[int], horizon: int) -> np.ndarray:
    """Number of positions in padded action chunks that each frame fills.

    Shapes: [sum of lengths] float64; an episode's weights sum to length · horizon.
    """
    weights = []
    for length in lengths:
        own = np.minimum(np.arange(1, length + 1), horizon).astype(np.float64)
        own[-1] = length * horizon - own[:-1].sum()
        weights.append(own)
    return np.concatenate(weights)


def see(
    which: Pass,
    block: Block,
    horizon: int,
    space: Space,
    tallies: Mapping[Key, Tally],
    relative: Tally,
) -> None:
    """Adds a block to the tallies of its states and actions, and its relative actions to `relative`."""
    weights = {
        "state": np.ones(len(block.state)),
        "actions": chunk_weights([e.length for e in block.episodes], horizon),
    }
    for key, tally in tallies.items():
        for values, shares in slices(getattr(block, key), weights[key]):
            getattr(tally, which)(space.alone(key, values), shares)
    for values in space.relative_rows(block, horizon):
        getattr(relative, which)(values, np.ones(len(values)))


def slices(values: np.ndarray, weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and weights, a few rows at a time.

    Float64 copies of a whole block would be the largest arrays in memory.
    """
    for start in range(0, len(values), _DIGIT):
        yield values[start : start + _DIGIT], weights[start : start + _DIGIT]


class Tally:
    """Exact counts of the rows of one dataset, which are passed twice.

    First all rows go to `first`. Then `aim` says what is counted around, and all rows go to `second`.

    Shapes: values [N, D] and the weight of each row [N].
    """

    def __init__(self) -> None:
        self._total, self._sums, self._squares, self._counts = (
            0.0,
            np.zeros(1),
            np.zeros(1),
            np.zeros((1, _DIGIT)),
        )
        self._low, self._high = np.array(np.inf), np.array(-np.inf)
        self._mean, self._lower = np.zeros(1), list[dict[int, np.ndarray]]()

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return len(self._sums)

    def aim(self, mean: np.ndarray, uppers: list[list[int]]) -> None:
        """Makes the second pass one about this mean and these quantiles.

        `uppers` are the upper digits at the quantiles, for each dimension.
        """
        self._mean = mean
        self._lower = [{digit: np.zeros(_DIGIT) for digit in row} for row in uppers]

    def of(self, d: int) -> OfDimension:
        """What was found of dimension `d`."""
        return OfDimension(
            int(self._total), float(self._sums[d]), float(self._low[d]), float(self._high[d]), self._counts[d]
        )

    def near(self, d: int) -> tuple[float, dict[int, np.ndarray]]:
        """The squares about the mean, and the counts of lower digits near the quantiles, of dimension `d`."""
        return float(self._squares[d]), self._lower[d]

    def first(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Adds rows to sums, extremes, and the counts of upper digits."""
        self._total += weights.sum()
        self._sums = self._sums + weights @ values.astype(np.float64)
        self._low, self._high = (
            np.minimum(self._low, values.min(axis=0)),
            np.maximum(self._high, values.max(axis=0)),
        )
        self._counts = self._counts + np.stack(
            [np.bincount(_digits(column)[0], weights, _DIGIT) for column in values.T]
        )

    def second(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Adds rows to the squares about the mean, and to the counts of lower digits near the quantiles.

        A lower digit is counted if its upper digit is that of a quantile.
        """
        self._squares = self._squares + weights @ (values.astype(np.float64) - self._mean) ** 2
        for column, bins in zip(values.T, self._lower, strict=True):
            upper, lower = _digits(column)
            for bin_ in bins:
                here = upper == bin_
                bins[bin_] += np.bincount(lower[here], weights[here], _DIGIT)


def _digits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 16 bits of integer keys whose order is that of the float32 values."""
    # Adding zero makes -0.0 equal to 0.0.
    bits = (np.ascontiguousarray(values) + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return keys >> 16, keys & 0xFFFF


def value_of(upper: int, lower: int) -> float:
    key = np.uint32(upper << 16 | lower)
    bits = key & np.uint32(0x7FFFFFFF) if key >> 31 else ~key
    return float(np.array(bits, np.uint32).view(np.float32))
