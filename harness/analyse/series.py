"""The curve as it is drawn: means, extremes and a smooth line over a limited number of stretches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.analyse.learning import logged_rates
from harness.analyse.level import block_means
from harness.analyse.schedule import learning_rate
from harness.artifacts.curve import CurveSeries
from harness.recipe.schema import Recipe

Floats = npt.NDArray[np.float64]

MAX_POINTS = 2_000


def series_of(columns: dict[str, Floats], recipe: Recipe, keep: npt.NDArray[np.bool_]) -> CurveSeries:
    """The curve in at most MAX_POINTS stretches.

    `keep`: [finite losses], True for those that are no spikes. The smooth line goes through these.
    """
    steps, losses = columns["step"], columns["loss"]
    count = min(len(steps), MAX_POINTS)
    edges = np.linspace(0, len(steps), count + 1).astype(int)
    rates = logged_rates(columns)
    rates = learning_rate(recipe.train.optimizer.schedule, steps) if rates is None else rates
    finite = np.isfinite(losses)
    counts = finite.copy()
    counts[finite] = keep
    return CurveSeries(
        step=[int(step) for step in steps[edges[:-1]]],
        loss=_means(losses, finite, edges),
        low=_extremes(np.where(finite, losses, np.inf), edges, np.minimum),
        high=_extremes(np.where(finite, losses, -np.inf), edges, np.maximum),
        smooth=_smooth(_means(losses, counts, edges)),
        grad_norm=_means(columns["grad_norm"], np.isfinite(columns["grad_norm"]), edges),
        learning_rate=_listed(block_means(rates, count)),
    )


def _means(values: Floats, counts: npt.NDArray[np.bool_], edges: npt.NDArray[np.intp]) -> list[float | None]:
    number = np.add.reduceat(counts.astype(float), edges[:-1])
    total = np.add.reduceat(np.where(counts, values, 0.0), edges[:-1])
    return _listed(np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0))


def _extremes(values: Floats, edges: npt.NDArray[np.intp], extreme: np.ufunc) -> list[float | None]:
    return _listed(extreme.reduceat(values, edges[:-1]))


def _smooth(values: list[float | None]) -> list[float | None]:
    """A Gaussian-weighted mean over a fortieth of the curve to each side. Gaps have no weight."""
    held = np.array([np.nan if value is None else value for value in values])
    known = np.isfinite(held).astype(float)
    width = max(1.0, len(held) / 80)
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total = np.convolve(np.pad(np.nan_to_num(held), reach), kernel, mode="valid")
    weight = np.convolve(np.pad(known, reach), kernel, mode="valid")
    return _listed(np.divide(total, weight, out=np.full(len(held), np.nan), where=weight > 1e-9))


def _listed(values: Floats) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
