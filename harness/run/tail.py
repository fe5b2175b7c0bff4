"""Reads the end of a run's metrics.jsonl: the last step, the pace and the loss."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from statistics import median
from typing import NamedTuple

from harness.artifacts import Metrics
from harness.artifacts.metrics_lines import metrics_of
from harness.received.files import open_received, there
from harness.units import MIB

# Bytes that are read: some twenty thousand lines.
TAIL_BYTES = 4 * MIB
RECENT = 20
POINTS = 60


class Tail(NamedTuple):
    """The readable lines at the end of metrics.jsonl. `whole`: they are the whole file."""

    lines: list[Metrics]
    whole: bool
    unreadable: int

    @property
    def last(self) -> Metrics | None:
        return self.lines[-1] if self.lines else None

    @property
    def step(self) -> int:
        """Number of logged steps."""
        return self.last.step + 1 if self.last else 0

    @property
    def step_s(self) -> float | None:
        """Median seconds per recent step.

        The first step of a run compiles. It is left out if there are others.
        """
        recent = self.lines[-RECENT:]
        is_first_among = self.whole and len(recent) == len(self.lines) > 1
        return _median([line.step_s for line in (recent[1:] if is_first_among else recent)])

    @property
    def data_s(self) -> float | None:
        """Median seconds for which a recent step waited for data."""
        return _median([line.data_s for line in self.lines[-RECENT:] if line.data_s is not None])

    def age_s(self, now: float) -> float | None:
        """Seconds from the last line to `now`; None if there is no line with a time."""
        if self.last is None or not math.isfinite(self.last.time):
            return None
        return max(0.0, now - self.last.time)

    def losses(self) -> list[float | None]:
        """Mean losses of at most POINTS stretches of equal length; None for one that is not finite."""
        count = min(POINTS, len(self.lines))
        cuts = [len(self.lines) * i // count for i in range(count + 1)] if count else []
        return [
            finite(sum(line.loss for line in self.lines[a:b]) / (b - a)) for a, b in itertools.pairwise(cuts)
        ]

    def not_finite(self) -> list[int]:
        """The steps whose loss or gradient norm is not finite."""
        return [
            line.step
            for line in self.lines
            if not (math.isfinite(line.loss) and math.isfinite(line.grad_norm))
        ]


def read_tail(path: Path) -> Tail:
    """The end of a metrics.jsonl; no lines if the file does not exist.

    If a step occurs twice, the later line counts.
    """
    if not there(path):
        return Tail([], True, 0)
    with open_received(path, path.parent) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read(TAIL_BYTES)
    whole = size <= TAIL_BYTES
    parts = text.split(b"\n")[0 if whole else 1 :]
    rows: dict[int, Metrics] = {}
    unreadable = 0
    for part in parts:
        if not part.strip():
            continue
        line = metrics_of(part)
        if line is None:
            unreadable += 1
        else:
            rows[line.step] = line
    return Tail([rows[step] for step in sorted(rows)], whole, unreadable)


def finite(value: float) -> float | None:
    """`value`; None for NaN and infinities."""
    return value if math.isfinite(value) else None


def _median(values: list[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else None
