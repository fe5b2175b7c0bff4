"""Exact statistics of states and of padded action chunks. Reads columns only, without images or JAX.

Frame p of an episode is in min(p + 1, horizon) of the episode's action chunks. The last frame is also in
their padding. So every value has a weight, and no chunk is built. Quantiles come from the digits of the
float32 values (radix selection), in two passes. Memory does not grow with the dataset. Nothing is
approximated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np

from harness.artifacts import Dataset, DegenerateDimension, DimensionStats, NormStats
from harness.data.held_out import Kept, blocks_without, left_out_of
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.data.rows import Block
from harness.data.transforms import EPSILON
from harness.errors import HarnessError
from harness.recipe.schema import Recipe

Key = Literal["state", "actions"]

QUANTILES = (0.01, 0.99)
# Rows processed at a time. A smaller dataset is read once, a larger one twice.
BLOCK_ROWS = 1 << 18
# A spread below this share of the values' magnitude is measurement noise, not movement.
TINY_SHARE = 1e-4
# A normalized value beyond this is 10 times the largest one within the quantiles. The usual cause is one
# outlier, or a spread that is too small.
LARGE_NORMALIZED = 10.0
_DIGIT = 1 << 16


def compute(recipe: Recipe, dataset: Dataset) -> NormStats:
    """Mean, std, 1 % and 99 % quantile, min and max of each dimension.

    The std is that of the population. Quantiles are linear between neighbours. Held-out episodes do not
    count.

    Raises: HarnessError "stats-degenerate" if the recipe asks for it; those of `left_out_of` and of the
    dataset's reader.
    """
    opened = open_dataset(Path(dataset.path), state=recipe.data.state, actions=recipe.data.actions)
    horizon = recipe.model.action_horizon
    keys: tuple[Key, ...] = ("actions",) if recipe.data.state is None else ("state", "actions")
    left_out = left_out_of(recipe, opened.episodes)
    found = _found(blocks_without(_blocks(opened), left_out), horizon, keys)
    norm_stats, findings = {}, []
    for key in cast(tuple[Key, ...], tuple(found)):
        norm_stats[key], problems = _judge(key, found[key], recipe)
        findings += problems
    if findings and recipe.data.degenerate_dimensions == "error":
        raise HarnessError(
            "stats-degenerate",
            f"{len(findings)} dimensions cannot be normalized well",
            got="; ".join(f"{f.key}[{f.dimension}] {f.problem}" for f in findings),
            need="a spread in every dimension",
            fix="--set data.degenerate_dimensions=pass_through, or =warn to normalize them as they are",
        )
    frames = len(Kept(opened.episodes, left_out))
    return NormStats(norm_stats=norm_stats, frames=frames, action_horizon=horizon, findings=findings)


def to_openpi_json(stats: NormStats) -> str:
    """The text of a norm_stats.json as openpi writes it: mean, std, q01 and q99 only."""
    body = {
        key: {name: getattr(value, name) for name in ("mean", "std", "q01", "q99")}
        for key, value in stats.norm_stats.items()
    }
    return json.dumps({"norm_stats": body}, indent=2)


def chunk_weights(lengths: list[int], horizon: int) -> np.ndarray:
    """Number of places in padded action chunks that each frame fills.

    Shapes: [sum of lengths] float64; an episode's weights sum to length · horizon.
    """
    weights = []
    for length in lengths:
        own = np.minimum(np.arange(1, length + 1), horizon).astype(np.float64)
        own[-1] = length * horizon - own[:-1].sum()
        weights.append(own)
    return np.concatenate(weights)


def _blocks(dataset: LeRobotDataset) -> Callable[[], Iterator[Block]]:
    if dataset.frames <= BLOCK_ROWS:
        held = [dataset.columns]
        return lambda: iter(held)
    return lambda: _coalesced(dataset.blocks())


def _coalesced(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks of at least BLOCK_ROWS rows (except the last), so that overhead per block stays small."""
    held: list[Block] = []
    rows = 0
    for block in blocks:
        held.append(block)
        rows += len(block.state)
        if rows >= BLOCK_ROWS:
            yield _joined(held)
            held, rows = [], 0
    if held:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    arrays = [
        np.concatenate([getattr(b, name) for b in blocks])
        for name in ("state", "actions", "timestamp", "task_index")
    ]
    return Block([episode for block in blocks for episode in block.episodes], *arrays)


def _found(
    blocks: Callable[[], Iterator[Block]], horizon: int, keys: tuple[Key, ...]
) -> dict[Key, DimensionStats]:
    tallies: dict[Key, Tally] = {key: Tally() for key in keys}
    for see in ("first", "second"):
        for block in blocks():
            weights = {
                "state": np.ones(len(block.state)),
                "actions": chunk_weights([e.length for e in block.episodes], horizon),
            }
            for key, tally in tallies.items():
                for values, shares in _slices(getattr(block, key), weights[key]):
                    getattr(tally, see)(values, shares)
    return {key: tally.result() for key, tally in tallies.items()}


def _slices(values: np.ndarray, weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and weights, a few rows at a time.

    Float64 copies of a whole block would be the largest arrays in memory.
    """
    for start in range(0, len(values), _DIGIT):
        yield values[start : start + _DIGIT], weights[start : start + _DIGIT]


class Tally:
    """Exact statistics of rows, which are passed twice in the same order.

    First all rows go to `first`, then all rows to `second`.

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

    def result(self) -> DimensionStats:
        """The statistics of all rows."""
        rows = zip(self._places, self._lower, self._upper, strict=True)
        q01, q99 = np.array(
            [_between(row, bins, before, self._ranks, self._total) for row, bins, before in rows]
        ).T
        std = np.sqrt(self._squares / self._total)
        vectors = {
            "mean": self._mean,
            "std": std,
            "q01": q01,
            "q99": q99,
            "min": self._low,
            "max": self._high,
        }
        return DimensionStats(**{name: vector.tolist() for name, vector in vectors.items()})

    @cached_property
    def _mean(self) -> np.ndarray:
        return self._sums / self._total

    @cached_property
    def _ranks(self) -> np.ndarray:
        """The ranks of the order statistics on either side of each quantile."""
        ranks = np.array([math.floor((self._total - 1) * q) + step for q in QUANTILES for step in (0, 1)])
        return np.minimum(ranks, int(self._total) - 1)

    @cached_property
    def _upper(self) -> np.ndarray:
        return np.cumsum(self._counts, axis=1)

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """The upper digit of the value at each of `_ranks`, for each dimension."""
        return [np.searchsorted(row, self._ranks, side="right") for row in self._upper]

    @cached_property
    def _lower(self) -> list[dict[int, np.ndarray]]:
        return [{int(bin_): np.zeros(_DIGIT) for bin_ in row} for row in self._places]


def _digits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 16 bits of integer keys whose order is that of the float32 values."""
    # Adding zero makes -0.0 equal to 0.0.
    bits = (np.ascontiguousarray(values) + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return keys >> 16, keys & 0xFFFF


def _value(upper: int, lower: int) -> float:
    key = np.uint32(upper << 16 | lower)
    bits = key & np.uint32(0x7FFFFFFF) if key >> 31 else ~key
    return float(np.array(bits, np.uint32).view(np.float32))


def _between(
    places: np.ndarray, lower: dict[int, np.ndarray], before: np.ndarray, ranks: np.ndarray, total: float
) -> list[float]:
    """Each quantile of one dimension, interpolated between the two order statistics around it."""
    order = []
    for place, rank in zip(places, ranks, strict=True):
        offset = rank - (before[place - 1] if place else 0)
        order.append(
            _value(int(place), int(np.searchsorted(np.cumsum(lower[int(place)]), offset, side="right")))
        )
    fractions = [(total - 1) * q % 1 for q in QUANTILES]
    return [
        order[2 * n] + (order[2 * n + 1] - order[2 * n]) * fraction for n, fraction in enumerate(fractions)
    ]


def _judge(
    key: Key, stats: DimensionStats, recipe: Recipe
) -> tuple[DimensionStats, list[DegenerateDimension]]:
    """The statistics with degenerate dimensions treated as the recipe says, and the findings on them."""
    quantile = recipe.data.normalization == "quantile"
    passed = recipe.data.degenerate_dimensions == "pass_through"
    assert stats.min is not None
    assert stats.max is not None
    changed = {name: list(getattr(stats, name)) for name in ("mean", "std", "q01", "q99")}
    findings = []
    for d, (low, high) in enumerate(zip(stats.min, stats.max, strict=True)):
        spread = stats.q99[d] - stats.q01[d] if quantile else stats.std[d]
        ends = [
            (
                (x - stats.q01[d]) / (spread + EPSILON) * 2 - 1
                if quantile
                else (x - stats.mean[d]) / (spread + EPSILON)
            )
            for x in (low, high)
        ]
        largest = max(abs(end) for end in ends)
        name = "q99 - q01" if quantile else "std"
        flat = spread <= TINY_SHARE * max(abs(low), abs(high))
        if low == high:
            problem = f"is constant ({low:g})"
        elif flat:
            problem = f"has a tiny {name} of {spread:.3g} within {low:g} to {high:g}"
        elif largest > LARGE_NORMALIZED:
            problem = (
                f"reaches {largest:.3g} when normalized: {name} is {spread:.3g}, the values go from {low:g}"
                f" to {high:g}"
            )
        else:
            continue
        if flat and passed:
            for statistic, neutral in (("mean", 0.0), ("std", 1.0), ("q01", -1.0), ("q99", 1.0)):
                changed[statistic][d] = neutral
            largest, fix = (
                max(abs(low), abs(high)),
                "passed through without normalization, as data.degenerate_dimensions says",
            )
        elif flat:
            fix = "--set data.degenerate_dimensions=pass_through keeps it as it is recorded"
        else:
            fix = (
                "look at the extreme frames of this dimension; a wrong value is best mended in a copy of the"
                " dataset"
            )
        findings.append(
            DegenerateDimension(
                key=key, dimension=d, problem=problem, largest_normalized=float(largest), fix=fix
            )
        )
    return stats.model_copy(update=changed), findings
