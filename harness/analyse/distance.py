"""The distance of a curve from a reference curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.analyse.level import clipped, level_of
from harness.analyse.trend import Test
from harness.artifacts.curve import Distance

Floats = npt.NDArray[np.float64]

MIN_COMMON = 8
_STRETCHES = 20


def distance(name: str, steps: Floats, losses: Floats, their_steps: Floats, their_losses: Floats) -> Distance:
    """The difference of two curves over their common steps, as a share of the reference's level.

    It has a 95 % interval. If both log the same steps, these are compared one by one. Otherwise the reference
    is interpolated between its own steps.
    """
    common = np.intersect1d(steps, their_steps)
    identical = 0
    if len(common):
        ours, theirs = (
            losses[np.searchsorted(steps, common)],
            their_losses[np.searchsorted(their_steps, common)],
        )
        identical = int((ours == theirs).sum())
    at = (
        common if len(common) >= MIN_COMMON else steps[(steps >= their_steps[0]) & (steps <= their_steps[-1])]
    )
    if len(at) < MIN_COMMON:
        return _nothing(name, len(common), identical)
    ours, theirs = np.interp(at, steps, losses), np.interp(at, their_steps, their_losses)
    scale = np.maximum(np.abs(level_of(theirs).level), 1e-12)
    away = (ours - theirs) / scale
    test = Test(at, clipped(away, level_of(away)))
    mean = float(test.values.mean())
    # The tested shape is a straight line. A mean of as many points is as uncertain, and its quantile is the
    # same within a few percent.
    half = test.line()[2] * float(np.sqrt(test.found.long_run[0] / test.blocks))
    parts = np.array_split(np.arange(len(at)), min(_STRETCHES, max(1, len(at) // 4)))
    stretches = [float(test_part.mean()) for test_part in (away[part] for part in parts)]
    worst = int(np.argmax(np.abs(stretches)))
    same = identical == len(common) and len(common) >= MIN_COMMON
    return Distance(
        reference=name,
        first_step=int(at[0]),
        last_step=int(at[-1]),
        common_steps=len(common),
        identical=identical,
        mean_difference=mean,
        low=mean - half,
        high=mean + half,
        largest_difference=stretches[worst],
        largest_at_step=int(at[parts[worst][0]]),
        answer=(
            "identical"
            if same
            else "within noise"
            if abs(mean) <= half
            else "higher"
            if mean > 0
            else "lower"
        ),
    )


def _nothing(name: str, common: int, identical: int) -> Distance:
    return Distance(
        reference=name,
        first_step=None,
        last_step=None,
        common_steps=common,
        identical=identical,
        mean_difference=None,
        low=None,
        high=None,
        largest_difference=None,
        largest_at_step=None,
        answer="too little in common",
    )
