"""The amount of learning rate that a run has applied, by the rates of its log or of a recipe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.analyse.schedule import full_rate_steps, learning_rate, thresholds
from harness.artifacts.curve import Learning
from harness.recipe.schema import Recipe

Floats = npt.NDArray[np.float64]


def learning_of(
    recipe: Recipe, columns: dict[str, Floats], applied: Floats, told: str, *, counted: bool
) -> Learning:
    """The rates of a run, and the amounts of them that are negligible or enough.

    `applied`: [N], as `applied_steps` gives it. `told` says how the recipe is known: "named", "run" or
    "assumed". `counted`: the steps are line numbers.
    """
    logged, schedule = logged_rates(columns), recipe.train.optimizer.schedule
    rates = learning_rate(schedule, columns["step"]) if logged is None else logged
    # Between lines that were merely counted lies an unknown number of steps.
    negligible, enough = (0.0, 0.0) if counted else thresholds(recipe)
    if told == "assumed" and logged is None and not columns["has_param_norm"].any():
        # Another trainer's log, of which no rate is known. A fall is one, whatever a recipe of ours applies.
        negligible = 0.0
    of_recipe = {"named": "as named", "run": "the run's own", "assumed": "assumed, since none was named"}[
        told
    ]
    return Learning(
        source=(
            "rates of the log itself" if logged is not None else f"rates of recipe {recipe.name}, {of_recipe}"
        ),
        first=float(rates[0]),
        last=float(rates[-1]),
        peak=schedule.peak,
        warmup_steps=schedule.warmup_steps,
        full_rate_steps=float(applied[-1]),
        negligible_below=negligible,
        enough_from=enough,
    )


def logged_rates(columns: dict[str, Floats]) -> Floats | None:
    """[N] learning rates of the log itself, interpolated. None if it has too few or only zeros."""
    rates = columns["learning_rate"]
    known = np.isfinite(rates)
    if known.mean() < 0.5 or not (rates[known] > 0).any():
        return None
    return np.interp(columns["step"], columns["step"][known], rates[known])


def applied_steps(recipe: Recipe, columns: dict[str, Floats]) -> Floats:
    """[N] steps at the recipe's peak rate that had been applied since the first logged step."""
    logged, peak = logged_rates(columns), recipe.train.optimizer.schedule.peak
    applied = full_rate_steps(recipe.train.optimizer.schedule, columns["step"], logged)
    return (
        applied
        if logged is None
        else applied * max(float(logged.max()), 1e-300) / max(peak, float(logged.max()))
    )


def applied_before(recipe: Recipe, step: float) -> float:
    """Steps at the recipe's peak rate that its own schedule applies before `step`, from step 0 on."""
    return float(full_rate_steps(recipe.train.optimizer.schedule, np.array([0.0, step]))[-1])


def rate_applied(losses: Floats, applied: Floats, learning: Learning) -> bool:
    """True if more than a negligible learning rate was applied before the first loss that is not finite.

    The log may show less than was applied.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad) or not bad[0]:
        return False
    return float(applied[bad[0]]) >= learning.negligible_below
