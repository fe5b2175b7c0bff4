"""Exact statistics of frames as they are drawn: of one dataset, or of a mixture, each with its share.

A frame of a dataset with the share s of S and n frames counts s·N / (S·n), where N is the number of all
frames. Of one dataset, and without weights, that is 1: the statistics are those of the datasets one after the
other. Counts stay whole numbers and are compared as whole numbers, so no share is rounded. Datasets are read
one after the other, and of each only the counts that are not 0 are kept: memory grows neither with the frames
nor, by more than a few MiB, with the datasets.

A dimension that some datasets lack has the statistics of those that have it. A relative dimension has those
of the relative actions alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from harness.artifacts import DimensionStats
from harness.data.rows import Block
from harness.data.space import Space
from harness.data.tally import QUANTILES, Key, OfDimension, Pass, Tally, see, value_of


class Part(NamedTuple):
    """A dataset, alone or of a mixture: its rows, its share of the samples, and what the model sees of it."""

    blocks: Callable[[], Iterator[Block]]
    share: int
    keys: tuple[Key, ...]
    space: Space


class _Counts(NamedTuple):
    """The digits that occur, sorted, and how many values have that digit or a lower one."""

    digits: np.ndarray
    cumulative: np.ndarray

    @classmethod
    def of(cls, dense: np.ndarray) -> _Counts:
        digits = np.flatnonzero(dense)
        return cls(digits.astype(np.int32), np.cumsum(dense[digits]).astype(np.int64))

    def up_to(self, digit: int) -> int:
        """Number of values whose digit is at most `digit`."""
        at = int(np.searchsorted(self.digits, digit, side="right"))
        return int(self.cumulative[at - 1]) if at else 0


class _Column(NamedTuple):
    """One dimension of dataset `part` after the first pass: its number of values, their sum and extremes."""

    part: int
    total: int
    sum: float
    low: float
    high: float
    counts: _Counts

    @classmethod
    def of(cls, part: int, found: OfDimension) -> _Column:
        return cls(part, found.total, found.sum, found.low, found.high, _Counts.of(found.counts))


def pooled(parts: Sequence[Part], horizon: int) -> dict[Key, DimensionStats]:
    """Mean, std, quantiles and extremes of each dimension over all datasets. Reads all rows twice."""
    tallies = [_Tallies(part) for part in parts]
    columns: dict[Key, list[list[_Column]]] = {}
    for n, each in enumerate(tallies):
        each.see("first", horizon)
        for key, found in each.columns(n).items():
            of_key = columns.setdefault(key, [])
            of_key.extend([] for _ in range(len(found) - len(of_key)))
            for of_dimension, column in zip(of_key, found, strict=False):
                of_dimension.append(column)
    pools = {
        key: [_Pool(of_dimension, [part.share for part in parts]) for of_dimension in of_key]
        for key, of_key in sorted(columns.items(), key=lambda item: item[0] != "state")
    }
    for n, each in enumerate(tallies):
        each.aim(pools)
        each.see("second", horizon)
        each.give(n, pools)
    return {key: _stats(of_key) for key, of_key in pools.items()}


def _stats(pools: list[_Pool]) -> DimensionStats:
    rows = [pool.result() for pool in pools]
    names = ("mean", "std", "q01", "q99", "min", "max")
    return DimensionStats(**{name: [row[i] for row in rows] for i, name in enumerate(names)})


class _Tallies:
    """The tallies of one dataset: of its states and actions, and of the actions that are relative."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._kept = [d for d, is_relative in enumerate(part.space.relative) if is_relative]
        self._widths: dict[Key, int] = {}
        self._fresh()

    def _fresh(self) -> None:
        self._of: dict[Key, Tally] = {key: Tally() for key in self._part.keys}
        self._relative = Tally()

    def see(self, which: Pass, horizon: int) -> None:
        """Passes over all rows."""
        for block in self._part.blocks():
            see(which, block, horizon, self._part.space, self._of, self._relative)

    def columns(self, n: int) -> dict[Key, list[_Column]]:
        """What the first pass found, dimension by dimension. Frees the dense counts."""
        found = {
            key: [_Column.of(n, tally.of(d)) for d in range(tally.width)] for key, tally in self._of.items()
        }
        for at, d in enumerate(self._kept):
            found["actions"][d] = _Column.of(n, self._relative.of(at))
        self._widths = {key: len(each) for key, each in found.items()}
        self._fresh()
        return found

    def _aims(self, pools: dict[Key, list[_Pool]]) -> Iterator[tuple[Tally, list[_Pool]]]:
        """Each tally with the pool of each of its columns; that of the relative actions comes last."""
        for key, tally in self._of.items():
            yield tally, pools[key][: self._widths[key]]
        if self._kept:
            yield self._relative, [pools["actions"][d] for d in self._kept]

    def aim(self, pools: dict[Key, list[_Pool]]) -> None:
        """Tells the second pass the means over all datasets, and the upper digits at the quantiles."""
        for tally, of_columns in self._aims(pools):
            tally.aim(np.array([pool.mean for pool in of_columns]), [pool.uppers for pool in of_columns])

    def give(self, n: int, pools: dict[Key, list[_Pool]]) -> None:
        """Hands what the second pass found to the pools, and frees the dense counts.

        What is found of relative actions comes last, and so replaces what the absolute ones gave.
        """
        for tally, of_columns in self._aims(pools):
            for d, pool in enumerate(of_columns):
                squares, lower = tally.near(d)
                pool.take(n, squares, {digit: _Counts.of(dense) for digit, dense in lower.items()})
        self._fresh()


class _Pool:
    """One dimension over all datasets that have it."""

    def __init__(self, columns: list[_Column], shares: list[int]) -> None:
        self._columns = columns
        whole = sum(shares[column.part] for column in columns)
        self._fractions = {column.part: shares[column.part] / whole for column in columns}
        # A value of a column counts share / whole · total / column.total. Over one common denominator these
        # are whole numbers.
        self._total = sum(column.total for column in columns)
        common = math.lcm(*(column.total for column in columns))
        self._unit = whole * common
        self._weights = {
            column.part: shares[column.part] * self._total * (common // column.total) for column in columns
        }
        self.mean = math.fsum(self._fractions[c.part] * (c.sum / c.total) for c in columns)
        self._ranks = [
            min(math.floor((self._total - 1) * q) + step, self._total - 1)
            for q in QUANTILES
            for step in (0, 1)
        ]
        digits = np.unique(np.concatenate([column.counts.digits for column in columns]))
        self.uppers = [self._first_above(rank, digits, self._up_to) for rank in self._ranks]
        self._squares: dict[int, float] = {}
        self._lower: dict[int, dict[int, _Counts]] = {}

    def take(self, part: int, squares: float, lower: dict[int, _Counts]) -> None:
        """Takes the second pass of one dataset."""
        self._squares[part], self._lower[part] = squares, lower

    def result(self) -> tuple[float, float, float, float, float, float]:
        """mean, std, q01, q99, min, max."""
        variance = math.fsum(
            self._fractions[c.part] * (self._squares[c.part] / c.total) for c in self._columns
        )
        order = [self._value(rank, upper) for rank, upper in zip(self._ranks, self.uppers, strict=True)]
        fractions = [(self._total - 1) * q % 1 for q in QUANTILES]
        q01, q99 = (
            order[2 * n] + (order[2 * n + 1] - order[2 * n]) * fraction
            for n, fraction in enumerate(fractions)
        )
        low, high = min(c.low for c in self._columns), max(c.high for c in self._columns)
        return self.mean, math.sqrt(variance), q01, q99, low, high

    def _up_to(self, digit: int) -> int:
        """The weight of all values whose upper digit is at most `digit`, in units of 1 / `_unit`."""
        return sum(self._weights[c.part] * c.counts.up_to(digit) for c in self._columns)

    def _value(self, rank: int, upper: int) -> float:
        """The value at a rank, whose upper digit is `upper`."""
        before = self._up_to(upper - 1)
        found = [(self._weights[part], lower[upper]) for part, lower in self._lower.items()]
        digits = np.unique(np.concatenate([counts.digits for _, counts in found]))

        def up_to(digit: int) -> int:
            return before + sum(weight * counts.up_to(digit) for weight, counts in found)

        return value_of(upper, self._first_above(rank, digits, up_to))

    def _first_above(self, rank: int, digits: np.ndarray, up_to: Callable[[int], int]) -> int:
        """The first digit up to which more than `rank` values lie."""
        low, high = 0, len(digits) - 1
        while low < high:
            middle = (low + high) // 2
            if up_to(int(digits[middle])) > rank * self._unit:
                high = middle
            else:
                low = middle + 1
        return int(digits[low])
