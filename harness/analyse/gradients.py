"""Findings about the gradient norms of a log: zero, not finite, clipped, leaping or growing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.analyse.findings import first_steps
from harness.artifacts.curve import CurveFinding
from harness.recipe.schema import Recipe

Floats = npt.NDArray[np.float64]


def about_gradients(columns: dict[str, Floats], recipe: Recipe) -> list[CurveFinding]:
    """Findings about gradients that are not finite, zero, clipped most of the time, leaping or growing."""
    steps, norms = columns["step"], columns["grad_norm"]
    found = _not_finite(steps, norms, columns["has_grad_norm"] > 0)
    steps, norms = steps[np.isfinite(norms)], norms[np.isfinite(norms)]
    if not len(norms):
        return found
    found += [*_zero(steps, norms), *_clipped(norms, recipe.train.optimizer.clip_norm)]
    if len(norms) < 12:
        return found
    return [*found, *_leaps(steps, norms), *_growth(norms)]


def _not_finite(steps: Floats, norms: Floats, there: npt.NDArray[np.bool_]) -> list[CurveFinding]:
    bad = ~np.isfinite(norms) & there
    if not bad.any():
        return []
    text = f"grad_norm is there, but not finite at {int(bad.sum())} of {int(there.sum())} logged steps"
    return [
        CurveFinding(
            severity="warning",
            code="gradient-not-finite",
            text=text,
            steps=first_steps(steps, np.flatnonzero(bad)),
        )
    ]


def _zero(steps: Floats, norms: Floats) -> list[CurveFinding]:
    zero = np.flatnonzero(norms == 0)
    if not len(zero):
        return []
    text = f"grad_norm is exactly 0 at {len(zero)} of {len(norms)} logged steps: nothing was trained there"
    return [
        CurveFinding(
            severity="error",
            code="gradient-zero",
            text=text,
            steps=first_steps(steps, zero),
            fix="see who is trained: harness inspect",
        )
    ]


def _clipped(norms: Floats, clip: float) -> list[CurveFinding]:
    over = float((norms > clip).mean())
    if over <= 0.5:
        return []
    text = (
        f"grad_norm is above the clip of {clip:g} at {100 * over:.0f} % of the logged steps: there the"
        " update has a fixed length, whatever the loss does"
    )
    return [CurveFinding(severity="info", code="gradient-clipped", text=text)]


def _leaps(steps: Floats, norms: Floats) -> list[CurveFinding]:
    usual = float(np.median(norms)) or 1e-12
    high = np.flatnonzero(norms > 5 * usual)[:1000]
    near = np.array([np.median(norms[max(0, i - 10) : i + 11]) for i in high])
    leaps = high[norms[high] > 5 * near] if len(high) else high
    if not len(leaps):
        return []
    who = "1 logged step has" if len(leaps) == 1 else f"{len(leaps)} logged steps have"
    text = (
        f"{who} a grad_norm of more than 5 times that of the steps around, up to"
        f" {norms[leaps].max():.4g} (usual {usual:.4g})"
    )
    return [
        CurveFinding(severity="warning", code="gradient-leaps", text=text, steps=first_steps(steps, leaps))
    ]


def _growth(norms: Floats) -> list[CurveFinding]:
    tenth = max(1, len(norms) // 10)
    growth = float(np.median(norms[-tenth:])) / (float(np.median(norms[:tenth])) or 1e-12)
    if growth <= 10:
        return []
    text = f"grad_norm is {growth:.0f} times at the end what it was at the start"
    return [
        CurveFinding(
            severity="warning",
            code="gradient-grows",
            text=text,
            fix="lower train.optimizer.schedule.peak",
        )
    ]
