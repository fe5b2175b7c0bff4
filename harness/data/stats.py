"""Exact statistics of states and of padded action chunks. Reads columns only, without images or JAX.

Frame p of an episode is in min(p + 1, horizon) of the episode's action chunks. The last frame is also in
their padding. So every value has a weight, and no chunk is built. Quantiles come from the digits of the
float32 values (radix selection), in two passes. Memory does not grow with the dataset. Nothing is
approximated.

A relative action depends on the frame at which its chunk begins. So of those dimensions every position in
every chunk is counted, those past the episode's end included, as openpi's scripts/compute_norm_stats.py does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from harness.artifacts import Dataset, DegenerateDimension, DimensionStats, NormStats
from harness.data.held_out import blocks_without
from harness.data.opened import Opened, open_each
from harness.data.pooled import Part, pooled
from harness.data.rows import Block
from harness.data.space import Space
from harness.data.tally import Key
from harness.data.transforms import EPSILON
from harness.errors import HarnessError
from harness.recipe.schema import Recipe

# Rows processed at a time. A smaller dataset is read once, a larger one twice.
BLOCK_ROWS = 1 << 18
# A spread below this share of the values' magnitude is measurement noise, not movement.
TINY_SHARE = 1e-4
# A normalized value beyond this is 10 times the largest one within the quantiles. The usual cause is one
# outlier, or a spread that is too small.
LARGE_NORMALIZED = 10.0


def compute(recipe: Recipe, dataset: Dataset) -> NormStats:
    """Mean, std, 1 % and 99 % quantile, min and max of each dimension.

    The std is that of the population. Quantiles are linear between neighbours. Held-out episodes do not
    count.

    Raises: HarnessError "stats-degenerate" if the recipe asks for it; those of `left_out_of` and of the
    dataset's reader.
    """
    return computed(recipe, open_each(recipe, dataset))


def computed(recipe: Recipe, opened: list[Opened]) -> NormStats:
    """The statistics as `compute`, of datasets that are open."""
    horizon = recipe.model.action_horizon
    parts = [
        Part(trained_blocks(opened, n), one.share, _keys(one), Space.of(one.recipe.data))
        for n, one in enumerate(opened)
    ]
    found = pooled(parts, horizon)
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
    frames = sum(one.trained for one in opened)
    return NormStats(norm_stats=norm_stats, frames=frames, action_horizon=horizon, findings=findings)


def to_openpi_json(stats: NormStats) -> str:
    """The text of a norm_stats.json as openpi writes it: mean, std, q01 and q99 only."""
    body = {
        key: {name: getattr(value, name) for name in ("mean", "std", "q01", "q99")}
        for key, value in stats.norm_stats.items()
    }
    return json.dumps({"norm_stats": body}, indent=2)


def trained_blocks(opened: list[Opened], n: int) -> Callable[[], Iterator[Block]]:
    """The rows of dataset `n` that are trained on, anew with each call.

    A small dataset that is alone stays in memory. Of a mixture none does while the next one is read.
    """
    data = opened[n].data
    if len(opened) == 1 and data.frames <= BLOCK_ROWS:
        return blocks_without(lambda: iter([data.columns]), opened[n].left_out)
    return blocks_without(lambda: _coalesced(data.blocks()), opened[n].left_out)


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
    arrays: list[Any] = [
        np.concatenate([getattr(b, name) for b in blocks])
        for name in ("state", "actions", "timestamp", "task_index")
    ]
    return Block([episode for block in blocks for episode in block.episodes], *arrays)


def _keys(one: Opened) -> tuple[Key, ...]:
    return ("actions",) if one.recipe.data.state is None else ("state", "actions")


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
