"""Comparison of our statistics with others, and our data's range when normalized with the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from harness.artifacts import Comparison, Difference, DimensionStats, NormStats, Reach, Statistic
from harness.data.norm_files import STATISTICS, Key, read_norm_stats
from harness.data.rows import Block
from harness.data.stats import LARGE_NORMALIZED
from harness.data.transforms import Normalization, normalize

# Most findings shown to a person. The artifact has every dimension.
_MOST_NAMED = 8


def compare_statistics(
    ours: NormStats,
    path: Path,
    *,
    mode: Normalization = "quantile",
    names: dict[Key, str] | None = None,
    blocks: Iterable[Block] | None = None,
) -> Comparison:
    """Differences between `ours` and the statistics at `path`, and our data's range under the latter.

    `path` is a file, or a directory that holds one. `blocks` are all of our rows. Padding with zeros to the
    model's action_dim, as some openpi versions wrote it, does not count as a dimension.

    Raises: HarnessError "norm-stats-not-found" or "norm-stats-invalid"; those of the reader of `blocks`.
    """
    keys: tuple[Key, ...] = tuple(ours.norm_stats)
    file, form, theirs = read_norm_stats(path, mode, keys=keys, names=names)
    differences, only_ours, only_theirs, shared = [], {}, {}, dict[Key, int]()
    for key, own in ours.norm_stats.items():
        other = theirs[key]
        width = width_without_padding(other, len(own.mean))
        shared[key] = min(len(own.mean), width)
        only_ours[key], only_theirs[key] = len(own.mean) - shared[key], width - shared[key]
        differences += [one for d in range(shared[key]) for one in _differences(key, d, own, other)]
    # A dimension without spread that differs is the worst case; one that agrees is the best.
    differences.sort(
        key=lambda d: -(d.share if d.share is not None else math.inf if d.ours != d.theirs else 0.0)
    )
    shares = [d.share for d in differences if d.share is not None]
    reach = [
        one
        for key, count in shared.items()
        for one in _extremes(key, ours.norm_stats[key], theirs[key], count, mode)
    ]
    if blocks is not None:
        reach = _counted(reach, theirs, shared, blocks, mode)
    reach.sort(key=lambda one: -max(abs(one.low), abs(one.high)))
    return Comparison(
        inputs=ours.inputs,
        path=str(file),
        form=form,
        differences=differences,
        largest_share=max(shares, default=None),
        only_ours=only_ours,
        only_theirs=only_theirs,
        reach=reach,
        findings=[_far(one) for one in reach if max(abs(one.low), abs(one.high)) > LARGE_NORMALIZED][
            :_MOST_NAMED
        ],
    )


def _differences(key: Key, dimension: int, own: DimensionStats, other: DimensionStats) -> list[Difference]:
    """One difference for each statistic that the other file has."""
    spread = own.q99[dimension] - own.q01[dimension]
    there: list[Statistic] = [name for name in STATISTICS if getattr(other, name)]
    found = []
    for name in there:
        a, b = getattr(own, name)[dimension], getattr(other, name)[dimension]
        found.append(
            Difference(
                key=key,
                dimension=dimension,
                statistic=name,
                ours=a,
                theirs=b,
                share=abs(b - a) / spread if spread > 0 else None,
            )
        )
    return found


def _extremes(
    key: Key, own: DimensionStats, other: DimensionStats, count: int, mode: Normalization
) -> list[Reach]:
    """Our extremes and quantiles of each shared dimension, normalized with their statistics.

    Their spread is never negative, so the order of the values stays.
    """
    if own.min is None or own.max is None:
        return []
    ours = (own.min, own.max, own.q01, own.q99)
    low, high, q01, q99 = (
        normalize(np.array(values[:count], np.float64), first(other, count), mode).tolist() for values in ours
    )
    return [
        Reach(key=key, dimension=d, low=low[d], high=high[d], q01=q01[d], q99=q99[d], outside=None)
        for d in range(count)
    ]


def _counted(
    reach: list[Reach],
    theirs: dict[Key, DimensionStats],
    shared: dict[Key, int],
    blocks: Iterable[Block],
    mode: Normalization,
) -> list[Reach]:
    """`reach` with the share of frames that lie outside of [-1, 1]."""
    counts, frames = {key: np.zeros(count, np.int64) for key, count in shared.items()}, 0
    for block in blocks:
        frames += len(block.actions)
        for key, count in shared.items():
            values = getattr(block, key)[:, :count]
            counts[key] += (np.abs(normalize(values, first(theirs[key], count), mode)) > 1).sum(axis=0)
    return [
        one.model_copy(update={"outside": float(counts[one.key][one.dimension] / max(frames, 1))})
        for one in reach
    ]


def _far(one: Reach) -> str:
    outside = (
        "" if one.outside is None else f"; {100 * one.outside:.2f} % of the frames lie outside of -1 to 1"
    )
    reach = f"{one.low:.4g} to {one.high:.4g} (98 % of it {one.q01:.4g} to {one.q99:.4g})"
    return (
        f"{one.key}[{one.dimension}] reaches {reach} when this data is normalized with their"
        f" statistics{outside}"
    )


def first(stats: DimensionStats, width: int) -> DimensionStats:
    """The statistics of the first `width` dimensions."""
    return DimensionStats(**{name: getattr(stats, name)[:width] for name in STATISTICS})


def width_without_padding(stats: DimensionStats, least: int) -> int:
    """Number of dimensions without zero padding after the first `least`."""
    vectors = [getattr(stats, name) for name in STATISTICS if getattr(stats, name)]
    width = len(vectors[0]) if vectors else 0
    while width > least and not any(vector[width - 1] for vector in vectors):
        width -= 1
    return width
