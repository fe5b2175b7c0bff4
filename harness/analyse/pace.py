"""Seconds per step, and the stalls of training: from the log's times, its clocks, or its progress bar.

Axes: N points, M = N - 1 intervals between them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.bars import Bars
from harness.artifacts.curve import Throughput

Floats = npt.NDArray[np.float64]

# A pause is a stall if the interval is this many times the usual one and this much longer, or if it is longer
# by more than any noise.
STALL_RATIO, STALL_S = 5.0, 30.0
LONG_S, LONG_RATIO = 600.0, 1.5
MOST = 20
# With fewer intervals than this, the rate that the bar shows counts as well.
_FEW = 5
_SETTLED = 6.0


class _Stalls(NamedTuple):
    """Stalls. `begins` are the steps before them, `ends` the steps after them.

    `pauses` are the seconds beyond the usual.
    """

    begins: list[int]
    ends: list[int]
    pauses: list[float]


def throughput(columns: dict[str, Floats], bars: Bars) -> Throughput | None:
    """The pace of the run, without the first logged step, which compiles. None if the log has no times."""
    steps, clock = columns["step"], columns["time"]
    timed = np.isfinite(clock)
    if np.isfinite(columns["update_s"]).sum() > 1:
        # LeRobot logs the update and the wait for its batch. The clock includes the saves too.
        by_clock = _from_clock(steps[timed], clock[timed], "", None, None) if timed.sum() > 2 else None
        return _from_steps(steps, columns["update_s"], columns, by_clock)
    if (
        timed.sum() > 2
        and (found := _from_clock(steps[timed], clock[timed], "times of the records", columns, None))
        is not None
    ):
        return found
    if np.isfinite(columns["step_s"]).sum() > 1:
        return _from_steps(steps, columns["step_s"], columns, None)
    states = bars.of_training()
    if len(states.step) > 1:
        found = _from_clock(states.step, states.seconds, "progress bar", None, states.shown_step_s)
        if found is not None:
            return found
    if bars.rates:
        return Throughput(
            source="progress lines",
            median_step_s=float(np.median(bars.rates)),
            slow_step_s=float(np.quantile(bars.rates, 0.95)),
            data_share=None,
            stalls=[],
        )
    return None


def _from_clock(
    steps: Floats, clock: Floats, source: str, columns: dict[str, Floats] | None, shown: Floats | None
) -> Throughput | None:
    """The pace from pairs of step and time.

    Between sessions the clock or the step goes back, or a stall is seen.
    """
    moved, passed = np.diff(steps), np.diff(clock)
    forward = (moved > 0) & (passed >= 0)
    # The first interval includes the compilation, unless the log begins later.
    forward[:1] &= len(moved) < 3 or float(steps[0]) > float(np.median(np.abs(moved)))
    if not forward.any() or not passed[forward].any():
        return None
    moved, passed, begins, ends = moved[forward], passed[forward], steps[:-1][forward], steps[1:][forward]
    usual = _usual(moved, passed)
    if shown is not None and len(moved) < _FEW and np.isfinite(shown).any():
        usual = min(usual, float(np.nanmedian(shown)))
    stalled = _stalled(moved, passed, usual)
    counted = ~stalled if not stalled.all() else np.ones(len(moved), bool)
    pace = _grouped(moved[counted], passed[counted])
    if not stalled.all():
        usual = float(np.median(pace))
    stalls = _worst(begins[stalled], ends[stalled], (passed - usual * moved)[stalled])
    return Throughput(
        source=source,
        median_step_s=usual,
        slow_step_s=max(usual, float(np.quantile(pace, 0.95))) if not stalled.all() else usual,
        data_share=_data_share(columns),
        stalls=list(zip(stalls.ends, stalls.pauses, strict=True)),
        stalls_from=stalls.begins,
    )


def _usual(moved: Floats, passed: Floats) -> float:
    """Seconds per step in most intervals.

    If there are two middle values, the faster: no error makes a step too fast.
    """
    return float(np.quantile(_grouped(moved, passed), 0.5, method="lower"))


def _grouped(moved: Floats, passed: Floats) -> Floats:
    """Seconds per step. A clock of whole seconds shows a pace below a second only over several records."""
    group = max(1, int(np.ceil(20 / max(1e-9, float(np.median(passed)))))) if np.median(passed) < 2 else 1
    cuts = np.arange(0, len(moved), min(group, len(moved)))
    return np.asarray(np.add.reduceat(passed, cuts) / np.add.reduceat(moved, cuts))


def _stalled(moved: Floats, passed: Floats, usual: float) -> npt.NDArray[np.bool_]:
    """[M]: True where training stood still in an interval."""
    expected = usual * moved
    pauses = passed - expected
    spread = 1.4826 * float(np.quantile(np.abs(pauses), 0.5, method="lower")) if len(pauses) > 1 else 0.0
    long = (pauses > LONG_S) & (passed > LONG_RATIO * expected) & (pauses > _SETTLED * spread)
    return np.asarray(((pauses > STALL_S) & (passed > STALL_RATIO * expected)) | long)


def _worst(begins: Floats, ends: Floats, pauses: Floats) -> _Stalls:
    kept = sorted(np.argsort(-pauses)[:MOST])
    return _Stalls(
        [int(begins[i]) for i in kept], [int(ends[i]) for i in kept], [float(pauses[i]) for i in kept]
    )


def _from_steps(
    steps: Floats, step_s: Floats, columns: dict[str, Floats], by_clock: Throughput | None
) -> Throughput:
    """The pace from the trainer's own step times. `by_clock` knows the stalls between them."""
    known = np.isfinite(step_s)
    known[0] &= known.sum() < 3
    pace, at = step_s[known], steps[known]
    usual = float(np.median(pace))
    stalled = (pace > STALL_RATIO * usual) & (pace - usual > STALL_S)
    own = _worst(np.concatenate([at[:1], at[:-1]])[stalled], at[stalled], (pace - usual)[stalled])
    counted = pace[~stalled] if not stalled.all() else pace
    return Throughput(
        source="step times",
        median_step_s=usual,
        slow_step_s=float(np.quantile(counted, 0.95)),
        data_share=_data_share(columns),
        stalls=by_clock.stalls if by_clock is not None else list(zip(own.ends, own.pauses, strict=True)),
        stalls_from=by_clock.stalls_from if by_clock is not None else own.begins,
    )


def _data_share(columns: dict[str, Floats] | None) -> float | None:
    """The share of time in which training waited for its batches."""
    if columns is None:
        return None
    # The harness's step includes the wait. LeRobot's update does not.
    whole = (
        columns["update_s"] + columns["data_s"]
        if np.isfinite(columns["update_s"]).any()
        else columns["step_s"]
    )
    both = np.isfinite(columns["data_s"]) & np.isfinite(whole)
    both[:1] = False
    total = float(whole[both].sum())
    return float(min(1.0, columns["data_s"][both].sum() / total)) if total > 0 else None
