"""The second curve of a log: the loss on data that is not trained on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.artifacts.curve import HeldOut

Floats = npt.NDArray[np.float64]

_MOST_POINTS = 2_000


def held_out(curve: tuple[Floats, Floats]) -> HeldOut | None:
    """The curve of (steps, losses) as it is reported. None if the log has none."""
    steps, losses = curve
    if not len(steps):
        return None
    lowest = int(np.argmin(losses))
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_POINTS)).round().astype(int))
    return HeldOut(
        points=len(steps),
        first=float(losses[0]),
        last=float(losses[-1]),
        lowest=float(losses[lowest]),
        lowest_at_step=int(steps[lowest]),
        step=[int(step) for step in steps[kept]],
        loss=[float(f"{loss:.6g}") for loss in losses[kept]],
    )
