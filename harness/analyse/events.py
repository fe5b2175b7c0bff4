"""Events along a curve: spikes, changepoints, a plateau, and divergence.

Axes: N points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.level import Excursion, Level, block_means, clipped, level_of
from harness.analyse.trend import ERROR_RATE, Test
from harness.artifacts.curve import Jump, Spike

Floats = npt.NDArray[np.float64]

MOST = 20
# A spike's least height, in the usual steps of so many neighbours on each side. Of 200 falling curves without
# a spike, of 10 to 40 points, at most 2 % show one; without this it is up to 23 %. Of single points at 2 to 4
# times the level, 89 % are found among 10 points and 97 % among 12 and more.
NEAR, _NEIGHBOURS = 4.0, 5
# A changepoint's least gap between two lines, in standard errors of that gap.
JUMP = 5.5
# The longest memory that windows of the curve can tell.
_MOST_MEMORY = 0.97
# A loss that ends at twice its best level, or above its first and at 1.5 times its best, has diverged if the
# rise is certain. Below that it merely does not learn.
DIVERGED_RATIO, ABOVE_START_RATIO, CERTAIN = 2.0, 1.5, 0.001
# Three points at the end at this many times the best level need no test.
EXPLODED_RATIO, EXPLODED_POINTS = 3.0, 3


def spikes(steps: Floats, values: Floats, level: Level, found: list[Excursion]) -> list[Spike]:
    """The highest of the excursions that came back, in order of steps."""
    back = [
        one
        for one in found
        if one.first > 0
        and one.last < len(values) - 1
        and one.height > max(0.2 * abs(level.level[one.first]), NEAR * _steps_near(values, one))
    ]
    highest = sorted(back, key=lambda one: -one.height)[:MOST]
    return [
        Spike(
            first_step=int(steps[e.first]),
            last_step=int(steps[e.last]),
            top=float(values[e.first : e.last + 1].max()),
            height=e.height,
        )
        for e in sorted(highest, key=lambda one: one.first)
    ]


def _steps_near(values: Floats, one: Excursion) -> float:
    """The usual size of the step from one point to the next, on both sides of an excursion.

    Where a curve is high, its noise may be larger than over the whole curve.
    """
    before = np.diff(values[max(0, one.first - _NEIGHBOURS) : one.first])
    after = np.diff(values[one.last + 1 : one.last + 1 + _NEIGHBOURS])
    moves = np.abs(np.concatenate([before, after]))
    return float(np.quantile(moves, 0.6)) if len(moves) else 0.0


def jumps(steps: Floats, values: Floats) -> list[Jump]:
    """The steps at which the level changes by more than noise and trend explain, from one point to the next.

    Two straight lines are fitted to the stretches before and after each candidate. Their gap there is
    compared with its standard error.
    """
    count = min(len(values), 400)
    reach = max(6, count // 10)
    if count < 3 * reach:
        return []
    means, centres = block_means(values, count), block_means(steps, count)
    x = np.arange(reach) - (reach - 1) / 2
    ahead = (reach + 1) / 2
    # Each line's value half a point beyond its stretch, as weights on the stretch's points.
    weights = 1 / reach + x * (ahead - 0.5) / (x @ x)
    windows = np.lib.stride_tricks.sliding_window_view(means, reach)
    before, after = windows[:-reach] @ weights, windows[reach:] @ weights[::-1]
    lines = np.stack([np.full(reach, 1 / np.sqrt(reach)), x / np.sqrt(x @ x)])
    rest = windows - (windows @ lines.T) @ lines
    left = (rest**2).sum(axis=1)
    variance = np.maximum((left[:-reach] + left[reach:]) / (2 * reach - 4), (1e-6 * np.abs(means).max()) ** 2)
    # The noise is at least half of its usual size: a stretch that is quiet by chance makes no changepoint.
    variance = np.maximum(variance, 0.5 * float(np.median(variance)))
    error = np.sqrt(2 * variance * (weights @ weights) * _widened(rest))
    # A loss of zero everywhere has neither noise nor a changepoint.
    ratio = np.divide(after - before, error, out=np.zeros(len(error)), where=error > 0)
    found: list[Jump] = []
    free = np.ones(len(ratio), bool)
    for index in np.argsort(-np.abs(ratio)):
        if abs(ratio[index]) < JUMP or len(found) == MOST:
            break
        if free[index] and abs(after[index] - before[index]) > 0.05 * abs(before[index]):
            found.append(
                Jump(step=int(centres[index + reach]), before=float(before[index]), after=float(after[index]))
            )
        free[max(0, index - reach) : index + reach + 1] = False
    return sorted(found, key=lambda jump: jump.step)


def _widened(rest: Floats) -> float:
    """The variance of a mean of the noise, over that of independent noise. `rest` [W, N]: noise of windows.

    A straight line was taken from each window, which biases its autocorrelation downwards.
    """
    squares, length = (rest**2).sum(axis=1), rest.shape[1]
    products = (rest[:, 1:] * rest[:, :-1]).sum(axis=1)
    known = squares > 0
    if not known.any():
        return 1.0
    found = float(np.median(products[known] / squares[known]))
    memory = min(max(0.0, (found * length + 2) / (length - 4)), _MOST_MEMORY)
    return (1 + memory) / (1 - memory)


def plateau(steps: Floats, values: Floats) -> int | None:
    """The step from which a curve that fell is near its end. None if there is no such step.

    Nine tenths of the fall lie before it, a quarter of the run or more after it. The curve after it is within
    a tenth of the level at the end, and in its later half no fall can be told from noise.
    """
    count = min(len(values), 100)
    level = level_of(block_means(values, count)).level
    tenth = max(1, count // 10)
    end = float(level[-tenth:].mean())
    near_end = level <= end + 0.1 * min(float(level[:tenth].mean()) - end, abs(end))
    above = np.flatnonzero(~near_end)
    first = int(above[-1]) + 1 if len(above) else 0
    if first > 0.75 * count or count < 20:
        return None
    index = int(np.ceil(first * len(values) / count))
    later = (index + len(values)) // 2
    return (
        int(steps[index])
        if len(values) - later >= 10 and Test(steps[later:], values[later:]).p_fall() > ERROR_RATE
        else None
    )


class Rise(NamedTuple):
    """The end of the loss compared with its best level before.

    `tail`: the number of points at the end that are far above that level.
    """

    best: float
    best_step: int
    end: float
    ratio: float
    tail: int
    diverged: bool
    p: float


def rise(steps: Floats, raw: Floats, test: Test) -> Rise | None:
    """The rise of the curve above its best level. None if there are too few points or a loss is not positive.

    `raw` are the values as logged, `test` is the curve without spikes.
    """
    if len(raw) < 6 or not (raw > 0).all():
        return None
    level = level_of(raw)
    tenth = max(1, len(raw) // 10)
    sums = np.concatenate([[0.0], np.cumsum(level.level)])
    smooth = (sums[tenth:] - sums[:-tenth]) / tenth
    lowest = int(np.argmin(smooth))
    best, noise = float(smooth[lowest]), float(np.median(level.noise[: max(3, len(raw) // 2)]))
    high = (raw > best + 6 * noise) & (raw > ABOVE_START_RATIO * best)
    low = np.flatnonzero(~high)
    tail = len(raw) - 1 - int(low[-1]) if len(low) else 0
    last = raw[-tail:] if tail >= EXPLODED_POINTS else raw[-max(1, len(raw) // 20) :]
    end = float(np.median(last))
    ratio = end / best if best > 0 else 1.0
    exploded = tail >= EXPLODED_POINTS and ratio >= EXPLODED_RATIO and lowest < len(raw) - tail
    p = 1.0
    enough = ratio >= (ABOVE_START_RATIO if end > 1.2 * float(np.median(raw[:tenth])) else DIVERGED_RATIO)
    if not exploded and enough and lowest < 0.95 * len(smooth):
        since = lowest if len(raw) - lowest >= 8 else 0
        held = np.maximum(clipped(raw, level), 0.1 * best)[since:]
        p = min(test.p_rise_late(), Test(steps[since:], np.log(held)).p_rise())
    return Rise(best, int(steps[min(lowest, len(steps) - 1)]), end, ratio, tail, exploded or p <= CERTAIN, p)
