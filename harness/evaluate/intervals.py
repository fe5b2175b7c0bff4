"""Intervals of success rates, and of the difference of two independent rates.

Successes and episodes may be fractions: repeats of one scene count together as one.

Sources: Wilson 1927; Newcombe 1998 (Statistics in Medicine 17, 873-890), method 10; Miettinen and Nurminen
1985 (Statistics in Medicine 4, 213-226), with the restricted estimate in closed form by Farrington and
Manning 1990; the correction of its skewness by Gart and Nam 1990, as Laud 2017 (Pharmaceutical Statistics 16,
334-348) has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.choose.intervals import student_quantile

LEVEL = 0.95
RESAMPLES = 4_000
SEED = 0
# With fewer tasks nothing is said of other tasks.
FEW_TASKS = 5


class Ends(NamedTuple):
    low: float
    high: float


def normal_quantile(level: float) -> float:
    """z so that a standard normal variable lies within ±z with probability `level`."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(successes: float, episodes: float, level: float = LEVEL) -> Ends:
    """Wilson's interval of a rate. (0, 1) without an episode."""
    return _wilson(successes, episodes, normal_quantile(level))


def _wilson(successes: float, episodes: float, z: float) -> Ends:
    if episodes <= 0:
        return Ends(0.0, 1.0)
    rate, square = successes / episodes, z * z
    middle = (rate + square / (2 * episodes)) / (1 + square / episodes)
    half = (
        z
        / (1 + square / episodes)
        * math.sqrt(max(rate * (1 - rate), 0.0) / episodes + square / (4 * episodes * episodes))
    )
    # The ends at no and at only successes are exact, not rounded.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return Ends(low, 1.0 if successes >= episodes else min(1.0, middle + half))


def newcombe(a: float, n: float, b: float, m: float, level: float = LEVEL) -> Ends:
    """Newcombe's interval of a/n - b/m for independent episodes."""
    one, two = wilson(a, n, level), wilson(b, m, level)
    p, q = (a / n if n else 0.5), (b / m if m else 0.5)
    return Ends(
        p - q - math.hypot(p - one.low, two.high - q),
        p - q + math.hypot(one.high - p, q - two.low),
    )


def score(a: float, n: float, b: float, m: float, level: float = LEVEL, *, skewness: bool = False) -> Ends:
    """Miettinen's and Nurminen's score interval of a/n - b/m for independent episodes.

    `skewness` corrects it for the skewness of the two counts. (-1, 1) without an episode on one side.
    """
    if n <= 0 or m <= 0:
        return Ends(-1.0, 1.0)
    z, difference = normal_quantile(level), a / n - b / m

    def deviate(gap: float) -> float:
        p, q = _restricted(a, n, b, m, gap)
        variance = (p * (1 - p) / n + q * (1 - q) / m) * (n + m) / (n + m - 1)
        if variance <= 0:
            return math.copysign(math.inf, difference - gap) if difference != gap else 0.0
        found = (difference - gap) / math.sqrt(variance)
        if not skewness:
            return found
        third = p * (1 - p) * (1 - 2 * p) / n**2 - q * (1 - q) * (1 - 2 * q) / m**2
        return _without_skewness(found, third / (6 * variance**1.5))

    return crossings(deviate, difference, z)


def _without_skewness(deviate: float, skew: float) -> float:
    """z of deviate = z + skew·(z² - 1). The deviate itself where there is no such z."""
    inside = 1 + 4 * skew * (deviate + skew)
    return deviate if inside < 0 else 2 * (deviate + skew) / (1 + math.sqrt(inside))


def independent(a: float, n: float, b: float, m: float, level: float = LEVEL) -> Ends:
    """The interval of a/n - b/m that decides: the hull of Newcombe's and of the score's without skewness.

    Alone, each errs too often with sizes that are far apart. benchmarks/coverage.py says how often this one
    does: on one side in at most 3.3 % of the cases, instead of 2.5, from 50 to 2,000 episodes.
    """
    one, two = newcombe(a, n, b, m, level), score(a, n, b, m, level, skewness=True)
    return Ends(min(one.low, two.low), max(one.high, two.high))


def crossings(deviate: Callable[[float], float], estimate: float, z: float) -> Ends:
    """Where a deviate that falls with the difference is z and -z, by bisection from the estimate."""

    def between(inside: float, outside: float) -> float:
        if abs(deviate(outside)) <= z:
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            if abs(deviate(middle)) <= z:
                inside = middle
            else:
                outside = middle
        return (inside + outside) / 2

    return Ends(between(estimate, -1.0), between(estimate, 1.0))


def _restricted(a: float, n: float, b: float, m: float, gap: float) -> tuple[float, float]:
    """The most likely rates whose difference is `gap`."""
    total = n + m
    # The cubic whose middle root is the second rate.
    square = (n + 2 * m) * gap - total - (a + b)
    linear = (m * gap - total - 2 * b) * gap + (a + b)
    constant = b * gap * (1 - gap)
    third = square / (3 * total)
    v = third**3 - linear * third / (2 * total) + constant / (2 * total)
    u = math.copysign(math.sqrt(max(third**2 - linear / (3 * total), 0.0)), v)
    angle = (math.pi + math.acos(min(1.0, max(-1.0, v / u**3 if u else 0.0)))) / 3
    q = min(1.0, max(0.0, 2 * u * math.cos(angle) - third))
    return min(1.0, max(0.0, q + gap)), q


def of_other_tasks(rates: npt.NDArray[np.float64], these: Ends, episodes: float) -> Ends | None:
    """The interval of the mean rate of tasks like these, from the rate of each task. None with few tasks.

    The hull of three: the bootstrap over tasks, its percentiles moved out for the number of tasks (Hesterberg
    2015, The American Statistician 69, 371-386); Wilson's at the effective number of episodes with Student's
    quantile (Dean and Pagano 2015, Journal of Survey Statistics and Methodology 3, 484-503); and `these`, the
    interval for these tasks alone. benchmarks/coverage.py says how often it holds the truth.

    Shape: [T]. `episodes`: how many there are, over all tasks.
    """
    count = len(rates)
    if count < FEW_TASKS:
        return None
    mean, spread = float(rates.mean()), float(rates.var(ddof=1))
    t = student_quantile(count - 1, LEVEL)
    if spread <= 0:
        return these
    stream = np.random.RandomState(SEED)
    means = stream.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) @ rates / count
    outside = NormalDist().cdf(-t * math.sqrt(count / (count - 1)))
    low, high = np.quantile(means, [outside, 1 - outside])
    effective = min(episodes, mean * (1 - mean) * count / spread)
    wide = _wilson(mean * effective, effective, t)
    return Ends(min(float(low), wide.low, these.low), max(float(high), wide.high, these.high))
