"""Intervals over episodes: Student's t, and with many of them its hull with a bootstrap.

The bootstrap's percentiles alone are too short for tens of episodes, and by far for comparisons of many
saves, whose level is high. They are moved out for the number of episodes, and see a long tail that Student's
t does not. benchmarks/coverage_choose.py says how often all of it errs.

Axes: E episodes, S saves.
Source: Hesterberg 2015, The American Statistician 69, 371-386, for the percentiles.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.artifacts.choice import Interval

Floats = npt.NDArray[np.float64]

# With fewer episodes a bootstrap says nothing of tails.
FEW = 20
RESAMPLES = 10_000
_SEED = 0
# Resamples at a time, so that ten thousand episodes take no more than 40 MB.
_AT_A_TIME = 500


class Method(NamedTuple):
    """How the intervals over so many episodes are made, in words."""

    episodes: int

    @property
    def words(self) -> str:
        if self.episodes < 2:
            return "none: one episode gives no interval"
        if self.episodes < FEW:
            return f"Student's t over {self.episodes} episodes"
        return (
            f"hull of Student's t and a bootstrap over {self.episodes} episodes, {RESAMPLES:,} resamples of"
            f" seed {_SEED}"
        )


def intervals(values: Floats, level: float = 0.95) -> list[Interval]:
    """The interval of each column's mean over the rows. A column with NaN has none.

    Shape: [E, S].
    """
    count = len(values)
    with np.errstate(invalid="ignore", over="ignore"):
        means = values.mean(axis=0)
    if count < 2:
        return [Interval(mean=_finite(mean)) for mean in means]
    low, high = _student(values, level)
    if count >= FEW:
        wide = _bootstrap(values, level)
        low, high = np.minimum(low, wide[0]), np.maximum(high, wide[1])
    return [
        Interval(mean=_finite(mean), low=_finite(a), high=_finite(b))
        for mean, a, b in zip(means, low, high, strict=True)
    ]


def _student(values: Floats, level: float) -> tuple[Floats, Floats]:
    count = len(values)
    with np.errstate(invalid="ignore", over="ignore"):
        half = student_quantile(count - 1, level) * values.std(axis=0, ddof=1) / math.sqrt(count)
        return values.mean(axis=0) - half, values.mean(axis=0) + half


def _bootstrap(values: Floats, level: float) -> tuple[Floats, Floats]:
    """The percentiles of the means of resampled episodes, moved out. All columns are resampled together."""
    count, stream = len(values), np.random.RandomState(_SEED)
    outside = NormalDist().cdf(-student_quantile(count - 1, level) * math.sqrt(count / (count - 1)))
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.concatenate(
            [
                stream.multinomial(count, np.full(count, 1 / count), size=_AT_A_TIME) @ values / count
                for _ in range(RESAMPLES // _AT_A_TIME)
            ]
        )
        low, high = np.quantile(means, [outside, 1 - outside], axis=0)
    return low, high


@functools.cache
def student_quantile(freedom: int, level: float) -> float:
    """t so that a Student variable of so many degrees of freedom lies within ±t with probability `level`."""
    low, high = 0.0, 1.0
    while _within(freedom, high) < level and high < 1e12:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(freedom, middle) < level else (low, middle)
    return high


def _within(freedom: int, t: float) -> float:
    """P(|T| ≤ t). Source: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term, total = 1.0, 0.0
    if freedom % 2:
        for n in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= square * 2 * n / (2 * n + 1)
        return 2 / math.pi * (angle + sine * math.cos(angle) * total)
    for n in range(1, freedom // 2 + 1):
        total += term
        term *= square * (2 * n - 1) / (2 * n)
    return sine * total


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
