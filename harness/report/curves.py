"""The training curves of a run, small enough for a page.

metrics.jsonl is read line by line and thinned without losing extremes.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import NamedTuple

from harness.artifacts import Metrics
from harness.artifacts.metrics_lines import MOST_LINES, read_lines

SERIES = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "step_s": "Step time, s",
}
MAX_POINTS = 2000


class Curves(NamedTuple):
    """The lines of a run. `rows` are sorted by step; of two lines of one step the later is kept.

    The counts say what was left out. `cut`: there are more lines than were read.
    """

    rows: list[Metrics]
    unreadable_lines: int
    repeated_steps: int
    cut: bool = False


def read_curves(path: Path) -> Curves | None:
    """The curves of a metrics.jsonl. None if there is none.

    A torn line (the trainer was killed) is counted, not fatal.

    Raises: UnsafeFile; OSError as `open` does.
    """
    rows: dict[int, Metrics] = {}
    unreadable = repeated = lines = 0
    try:
        for line in read_lines(path, path.parent):
            lines, row = line.number, line.metrics
            if row is None:
                unreadable += 1
                continue
            repeated += row.step in rows
            rows[row.step] = row
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Curves([rows[step] for step in sorted(rows)], unreadable, repeated, lines >= MOST_LINES)


def series(rows: list[Metrics], most: int = MAX_POINTS) -> dict[str, list[list[float | None]]]:
    """Name → [steps, values] with six digits, about `most` of them. A value that is not finite is null.

    The first step's time is left out: that step compiles, and would flatten the curve.
    """
    found = {}
    for name in SERIES:
        shown = rows[1:] if name == "step_s" and len(rows) > 1 else rows
        found[name] = _thinned([row.step for row in shown], [getattr(row, name) for row in shown], most)
    return found


def _thinned(steps: list[int], values: list[float], most: int) -> list[list[float | None]]:
    """[steps, values], about `most` at most.

    Kept are the least and the greatest value of each stretch, and its first value that is not finite.
    """
    stretch = max(1, math.ceil(len(values) / (most // 2)))
    kept: set[int] = set()
    if stretch < 3:
        kept = set(range(len(values)))
    for start in range(0, len(values), stretch) if not kept else ():
        indices = range(start, min(start + stretch, len(values)))
        finite = [i for i in indices if math.isfinite(values[i])]
        kept |= (
            {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)} if finite else set()
        )
        kept |= set([i for i in indices if not math.isfinite(values[i])][:1])
    order = sorted(kept | ({0, len(values) - 1} if values else set()))
    return [
        [steps[i] for i in order],
        [float(f"{values[i]:.6g}") if math.isfinite(values[i]) else None for i in order],
    ]


class Tenths(NamedTuple):
    """Mean loss of the first and of the last tenth of the logged steps."""

    first: float
    last: float
    first_steps: tuple[int, int]
    last_steps: tuple[int, int]

    @property
    def change(self) -> float | None:
        return (self.last - self.first) / abs(self.first) if self.first else None


def loss_tenths(rows: list[Metrics]) -> Tenths | None:
    """The mean losses. None for fewer than ten finite losses: a tenth would be less than one step."""
    finite = [row for row in rows if math.isfinite(row.loss)]
    count = len(finite) // 10
    if not count:
        return None
    first, last = finite[:count], finite[-count:]
    means = [math.fsum(row.loss for row in part) / count for part in (first, last)]
    return Tenths(means[0], means[1], (first[0].step, first[-1].step), (last[0].step, last[-1].step))


class OfDataset(NamedTuple):
    """Mean loss of one dataset of a mixture, over the first and over the last tenth of the logged steps."""

    name: str
    first: float
    last: float


def dataset_losses(rows: list[Metrics]) -> list[OfDataset]:
    """The mean losses of each dataset of a mixture, in the order of their names in the lines.

    Empty without a mixture, and for fewer than ten lines.
    """
    count = len(rows) // 10
    names = dict.fromkeys(name for row in rows for name in row.datasets or {})
    found = []
    for name in names if count else ():
        ends = []
        for part in (rows[:count], rows[-count:]):
            losses = [loss for row in part if (loss := (row.datasets or {}).get(name)) is not None]
            finite = [loss for loss in losses if math.isfinite(loss)]
            ends.append(math.fsum(finite) / len(finite) if finite else math.nan)
        found.append(OfDataset(name, *ends))
    return found


def median_of(rows: list[Metrics], name: str) -> float | None:
    """The median of a column over its finite values. None if there is none.

    The first row is left out, since its step compiles.
    """
    values = [value for row in rows[1:] if (value := getattr(row, name)) is not None and math.isfinite(value)]
    return median(values) if values else None


def non_finite_losses(rows: list[Metrics]) -> list[int]:
    """The steps whose loss is NaN or infinite."""
    return [row.step for row in rows if not math.isfinite(row.loss)]
