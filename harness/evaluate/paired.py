"""Tests and intervals for two policies on the same scenes.

A table has four cells: both succeed, only ours, only theirs, neither. Cells may be fractions: repeats of one
scene share one count among the cells.

Sources: McNemar 1947, exact form; Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10; Tango 1998
(Statistics in Medicine 17, 891-908).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from harness.evaluate.intervals import LEVEL, Ends, crossings, normal_quantile, wilson


class Cells(NamedTuple):
    """How many scenes."""

    both: float
    ours: float
    theirs: float
    neither: float

    @property
    def scenes(self) -> float:
        return sum(self)

    @property
    def difference(self) -> float:
        """Our rate less theirs. 0 without a scene."""
        return (self.ours - self.theirs) / self.scenes if self.scenes else 0.0


def mcnemar(ours: int, theirs: int) -> float:
    """The two-sided p of so many scenes in which only ours, and only theirs, succeeds.

    Exact: the binomial law with one half, its tail doubled. 1 without such a scene.
    """
    count = ours + theirs
    tail = sum(math.comb(count, k) for k in range(min(ours, theirs) + 1))
    # Whole numbers of any size: their quotient is rounded once.
    return min(1.0, 2 * tail / 2**count) if count < 1000 else min(1.0, _quotient(2 * tail, count))


def _quotient(numerator: int, power: int) -> float:
    """numerator / 2**power, also where neither fits a float."""
    shift = max(0, numerator.bit_length() - 64)
    return math.ldexp(float(numerator >> shift), shift - power)


def newcombe_paired(cells: Cells, level: float = LEVEL) -> Ends:
    """Newcombe's interval of our rate less theirs. (-1, 1) without a scene."""
    n = cells.scenes
    if n <= 0:
        return Ends(-1.0, 1.0)
    a, b, c, d = cells
    p, q = (a + b) / n, (a + c) / n
    one, two = wilson(a + b, n, level), wilson(a + c, n, level)
    down, up = (p - one.low, two.high - q), (one.high - p, q - two.low)
    likeness = _likeness(a, b, c, d)
    return Ends(
        p - q - math.sqrt(max(down[0] ** 2 - 2 * likeness * down[0] * down[1] + down[1] ** 2, 0.0)),
        p - q + math.sqrt(max(up[0] ** 2 - 2 * likeness * up[0] * up[1] + up[1] ** 2, 0.0)),
    )


def _likeness(a: float, b: float, c: float, d: float) -> float:
    """The correlation of the two outcomes, corrected for continuity where it is positive."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins <= 0:
        return 0.0
    cross = a * d - b * c
    if cross > 0:
        cross = max(cross - (a + b + c + d) / 2, 0.0)
    return cross / math.sqrt(margins)


def tango(cells: Cells, level: float = LEVEL) -> Ends:
    """Tango's score interval of our rate less theirs. (-1, 1) without a scene."""
    n, b, c = cells.scenes, cells.ours, cells.theirs
    if n <= 0:
        return Ends(-1.0, 1.0)

    def deviate(gap: float) -> float:
        middle = (2 * n - b + c) * gap - b - c
        theirs = (math.sqrt(max(middle**2 + 8 * n * c * gap * (1 - gap), 0.0)) - middle) / (4 * n)
        variance = n * (2 * theirs + gap * (1 - gap))
        distance = b - c - n * gap
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    return crossings(deviate, cells.difference, normal_quantile(level))
