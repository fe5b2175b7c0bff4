"""Learning rates in numpy: the rate at each step, and the total that was applied."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.recipe.schema import Recipe, Schedule

Floats = npt.NDArray[np.float64]

# Fewer steps at the peak rate than the first cannot show in the loss of a fine-tune. From the second on, a
# healthy run shows.
NEGLIGIBLE_STEPS, ENOUGH_STEPS = 10.0, 200.0
# For short recipes: shares of the total that the recipe applies.
NEGLIGIBLE_SHARE, ENOUGH_SHARE = 0.01, 0.2
_FINE = 200_000


def learning_rate(schedule: Schedule, steps: Floats) -> Floats:
    """The rate of the update that step `s` makes: a linear warm-up, then a cosine.

    Linear from peak / (warmup + 1) to peak, then a cosine down to `end`.

    Source: openpi src/openpi/training/optimizer.py `CosineDecaySchedule`, commit 15a9616.
    """
    warmup = schedule.warmup_steps
    first = schedule.peak / (warmup + 1)
    rising = first + (schedule.peak - first) * np.clip(steps / max(1, warmup), 0, 1)
    share = np.clip((steps - warmup) / (schedule.decay_steps - warmup), 0, 1)
    falling = schedule.end + (schedule.peak - schedule.end) * 0.5 * (1 + np.cos(np.pi * share))
    return np.where(steps < warmup, rising, falling)


def full_rate_steps(schedule: Schedule, steps: Floats, logged: Floats | None = None) -> Floats:
    """The amount applied from the first of `steps` (sorted) up to each of them, in steps at the peak rate.

    `logged`: the rates that the log gives at these steps. They then count instead of the schedule's.
    """
    if not len(steps):
        return steps
    peak = schedule.peak if logged is None else max(float(np.nanmax(logged)), 1e-300)
    if logged is None:
        grid = np.unique(
            np.concatenate(
                [np.linspace(steps[0], steps[-1], min(_FINE, int(steps[-1] - steps[0]) + 1)), steps]
            )
        )
        rates = learning_rate(schedule, grid)
    else:
        grid, rates = steps, logged
    applied = np.concatenate([[0.0], np.cumsum(np.diff(grid) * (rates[1:] + rates[:-1]) / 2)])
    return np.interp(steps, grid, applied) / peak


def thresholds(recipe: Recipe) -> tuple[float, float]:
    """(amount below which nothing can show, amount from which a healthy run shows).

    Both are in steps at the peak rate.
    """
    planned = float(full_rate_steps(recipe.train.optimizer.schedule, np.array([0.0, recipe.train.steps]))[-1])
    return min(NEGLIGIBLE_STEPS, NEGLIGIBLE_SHARE * planned), min(ENOUGH_STEPS, ENOUGH_SHARE * planned)


def steps_until(schedule: Schedule, first: int, amount: float) -> int | None:
    """The first step by which `amount` steps at the peak rate have been applied since `first`.

    None if that is more than a million steps away.
    """
    steps = np.arange(first, first + 1_000_001, dtype=np.float64)
    applied = np.concatenate([[0.0], np.cumsum(learning_rate(schedule, steps)[:-1])]) / schedule.peak
    index = int(np.searchsorted(applied, amount))
    return first + index if index < len(steps) else None
