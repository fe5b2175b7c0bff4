"""The second curve of a log: the loss on data that is not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.artifacts.curve import HeldOut
from harness.artifacts.held_out import read_held_out
from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.run.directory import HELD_OUT

Floats = npt.NDArray[np.float64]

_MOST_POINTS = 2_000


def measured(run: Path | None) -> tuple[Floats, Floats] | None:
    """(steps, losses) of a run's own held_out.jsonl, NaN where one is not finite. None if there is none.

    Raises: UnsafeFile; HarnessError "log-unreadable".
    """
    if run is None:
        return None
    path = run / HELD_OUT
    try:
        found = read_held_out(path, run)
    except OSError as error:
        raise HarnessError(
            "log-unreadable",
            f"cannot read {path}: {error.strerror}",
            need="permission to read it",
            fix=may_be_opened(path),
        ) from error
    if found is None or not found.lines:
        return None
    lines = found.newest
    losses = [np.nan if line.mean_loss is None else line.mean_loss for line in lines]
    return np.array([float(line.step) for line in lines]), np.array(losses)


def held_out(curve: tuple[Floats, Floats]) -> tuple[HeldOut | None, list[int]]:
    """(the curve of (steps, losses) as it is reported, the steps whose loss is not finite).

    The curve has the finite losses. It is None if there are none.
    """
    finite = np.isfinite(curve[1])
    lost = [int(step) for step in curve[0][~finite]]
    steps, losses = curve[0][finite], curve[1][finite]
    if not len(steps):
        return None, lost
    lowest = int(np.argmin(losses))
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_POINTS)).round().astype(int))
    found = HeldOut(
        points=len(steps),
        first=float(losses[0]),
        last=float(losses[-1]),
        lowest=float(losses[lowest]),
        lowest_at_step=int(steps[lowest]),
        step=[int(step) for step in steps[kept]],
        loss=[float(f"{loss:.6g}") for loss in losses[kept]],
    )
    return found, lost
