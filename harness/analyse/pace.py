"""Seconds a step, and where training stood still: from the log's own times, its clocks, or its progress bar."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from harness.artifacts.curve import Throughput

Floats = npt.NDArray[np.float64]

# A pause is a stall when it is this many times the usual one, and this much longer.
STALL_RATIO, STALL_S = 5.0, 30.0
MOST = 20
_MOST_BARS = 20_000
_BAR = re.compile(rb"(\d+)/\d+ \[(?:(\d+):)?(\d+):(\d\d)<")
_RATE = re.compile(rb"rate:([\d.]+)(it/s|s/it)")


def throughput(columns: dict[str, Floats], text: bytes) -> Throughput | None:
    """The pace of the run; None when the log says nothing of time. The first step logged is left out: it compiles."""
    steps, step_s, clock = columns["step"], columns["step_s"], columns["time"]
    timed = np.isfinite(clock)
    if timed.sum() > 2:
        return _from_clock(steps[timed], clock[timed], "times of the records", columns)
    if np.isfinite(step_s).sum() > 1:
        return _from_steps(steps, step_s, columns)
    bars = _BAR.findall(text) if b"it/s" in text or b"s/it" in text else []
    bars = bars[:: 1 + len(bars) // _MOST_BARS]
    if len(bars) > 2:
        cells = np.array([[float(cell or 0) for cell in bar] for bar in bars])
        return _from_clock(cells[:, 0], cells[:, 1:] @ np.array([3600.0, 60.0, 1.0]), "progress bar", None)
    rates = [1 / float(rate) if unit == b"it/s" else float(rate) for rate, unit in _RATE.findall(text) if float(rate) > 0]
    if rates:
        return Throughput(
            source="progress lines", median_step_s=float(np.median(rates)), slow_step_s=float(np.quantile(rates, 0.95)), data_share=None, stalls=[]
        )
    return None


def _from_clock(steps: Floats, clock: Floats, source: str, columns: dict[str, Floats] | None) -> Throughput | None:
    """From pairs of step and time. Between sessions the clock or the step goes back, or a stall is seen, which is one."""
    moved, passed = np.diff(steps), np.diff(clock)
    forward = (moved > 0) & (passed >= 0)
    forward[:1] &= len(moved) < 3
    if not forward.any() or not passed[forward].any():
        return None
    moved, passed, ends = moved[forward], passed[forward], steps[1:][forward]
    # Clocks of whole seconds: a pace below a second only shows over several records.
    group = max(1, int(np.ceil(20 / max(1e-9, float(np.mean(passed)))))) if np.mean(passed) < 2 else 1
    cuts = np.arange(0, len(moved), group)
    pace = np.add.reduceat(passed, cuts) / np.add.reduceat(moved, cuts)
    usual = float(np.median(pace))
    pauses = passed - usual * moved
    stalled = np.flatnonzero((pauses > STALL_S) & (passed > STALL_RATIO * usual * moved))
    worst = sorted(stalled[np.argsort(-pauses[stalled])][:MOST])
    return Throughput(
        source=source,
        median_step_s=usual,
        slow_step_s=float(np.quantile(pace, 0.95)),
        data_share=_data_share(columns),
        stalls=[(int(ends[i]), float(pauses[i])) for i in worst],
    )


def _from_steps(steps: Floats, step_s: Floats, columns: dict[str, Floats]) -> Throughput:
    known = np.isfinite(step_s)
    known[0] = known.sum() < 3
    pace, at = step_s[known], steps[known]
    usual = float(np.median(pace))
    stalled = np.flatnonzero((pace > STALL_RATIO * usual) & (pace - usual > STALL_S))
    worst = sorted(stalled[np.argsort(-pace[stalled])][:MOST])
    stalls = [(int(at[i]), float(pace[i] - usual)) for i in worst]
    return Throughput(source="step times", median_step_s=usual, slow_step_s=float(np.quantile(pace, 0.95)), data_share=_data_share(columns), stalls=stalls)


def _data_share(columns: dict[str, Floats] | None) -> float | None:
    """The share of time that training waited for its batches."""
    if columns is None:
        return None
    both = np.isfinite(columns["data_s"]) & np.isfinite(columns["step_s"])
    both[:1] = False
    total = float(columns["step_s"][both].sum())
    return float(min(1.0, columns["data_s"][both].sum() / total)) if total > 0 else None
