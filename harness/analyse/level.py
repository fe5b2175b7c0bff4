"""The level of a noisy curve, its noise, and the points that belong to neither: spikes that came back.

Axes: N points, B blocks of neighbouring points.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

BLOCKS = 50
# In standard deviations of the noise, estimated by its median absolute deviation.
SPIKE, BACK, CLIP = 6.0, 2.0, 3.0
_MAD = 1.4826


class Level(NamedTuple):
    """`level` and `noise` at each point [N]."""

    level: Floats
    noise: Floats


class Excursion(NamedTuple):
    """Points above the level. `first` and `last` are indices, both included."""

    first: int
    last: int
    height: float


def level_of(values: Floats) -> Level:
    """A running median, with its noise.

    It leaves anything monotone as it is. It does not follow a spike of up to a twelfth of the curve.
    """
    count = len(values)
    edges = (
        np.linspace(0, count, min(count, BLOCKS) + 1).astype(int)
        if count >= 3 * BLOCKS
        else np.arange(count + 1)
    )
    middles = (edges[1:] + edges[:-1] - 1) / 2
    medians = np.array([np.median(values[a:b]) for a, b in pairwise(edges)])
    width = (
        max(1, min(9, len(medians) // 3) | 1)
        if len(medians) > BLOCKS // 2
        else max(1, min(7, len(medians) // 3) | 1)
    )
    level = np.interp(np.arange(count), middles, _running_median(medians, width))
    away = np.abs(values - level)
    # One of `width` points is its own median, and its distance of 0 tells nothing of the noise.
    middle = 0.5 if count >= 3 * BLOCKS else 0.5 + 0.5 / width
    overall = _MAD * float(np.quantile(away, middle))
    if count < 8 * BLOCKS:
        return Level(level, np.full(count, overall))
    spreads = _MAD * np.array([np.median(away[a:b]) for a, b in pairwise(edges)])
    noise = np.interp(np.arange(count), middles, _running_median(spreads, 9))
    return Level(level, np.maximum(noise, 0.1 * overall))


def settle(values: Floats) -> tuple[Level, list[Excursion]]:
    """The level, and the excursions from it.

    They are found twice, the second time from the level without the first excursions.
    """
    level = level_of(values)
    keep = without(excursions(values, level), len(values))
    if not keep.all():
        at, indices = np.flatnonzero(keep), np.arange(len(values))
        kept = level_of(values[keep])
        level = Level(np.interp(indices, at, kept.level), np.interp(indices, at, kept.noise))
    return level, excursions(values, level)


def _running_median(values: Floats, width: int) -> Floats:
    """Centred medians of `width` values (odd). Near the ends the window shrinks on both sides."""
    half = width // 2
    return np.array(
        [
            np.median(values[i - reach : i + reach + 1])
            for i in range(len(values))
            if (reach := min(half, i, len(values) - 1 - i)) >= 0
        ]
    )


def excursions(values: Floats, level: Level) -> list[Excursion]:
    """Every stretch far above the level, with its flanks, in order."""
    noise = np.maximum(level.noise, 1e-12)
    above = (values - level.level) / noise
    high = above > SPIKE
    raised = above > BACK
    found: list[Excursion] = []
    for index in np.flatnonzero(high):
        if found and index <= found[-1].last + 1:
            if index > found[-1].last:
                found[-1] = found[-1]._replace(last=int(index))
            continue
        first = last = int(index)
        while first > 0 and raised[first - 1]:
            first -= 1
        while last + 1 < len(values) and raised[last + 1]:
            last += 1
        found.append(Excursion(first, last, 0.0))
    return [
        e._replace(height=float((values[e.first : e.last + 1] - level.level[e.first : e.last + 1]).max()))
        for e in found
    ]


def without(excursions_: list[Excursion], count: int) -> Mask:
    """[N]: True where a point counts for the trend.

    Excursions that touch an end stay in. All stay in if they are more than two fifths of the curve.
    """
    keep = np.ones(count, bool)
    for one in excursions_:
        if one.first > 0 and one.last < count - 1:
            keep[one.first : one.last + 1] = False
    return keep if keep.mean() >= 0.6 else np.ones(count, bool)


def clipped(values: Floats, level: Level) -> Floats:
    """The values, none further than CLIP deviations from the level.

    Heavy tails carry no information about the trend.
    """
    reach = CLIP * level.noise
    return np.where(level.noise > 0, np.clip(values, level.level - reach, level.level + reach), values)


def block_means(values: Floats, blocks: int) -> Floats:
    """[B]: means of `blocks` stretches of neighbouring points, of lengths as equal as possible."""
    edges = np.linspace(0, len(values), blocks + 1).astype(int)
    return np.asarray(np.add.reduceat(values, edges[:-1]) / np.diff(edges))
