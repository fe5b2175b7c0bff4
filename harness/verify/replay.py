"""Comparison of recomputed metrics with the recorded ones."""

from __future__ import annotations

import math
from pathlib import Path

from harness.artifacts.metrics_lines import Line, read_lines
from harness.artifacts.verdict import Replay
from harness.errors import HarnessError
from harness.received.files import there
from harness.received.text import one_line, word

# The metrics that a step computes. The other metrics are times.
VALUES = ("loss", "grad_norm", "param_norm", "learning_rate")
# On another kind of device, or with nondeterministic kernels, matrix products round differently. bfloat16 has
# 8 bits of mantissa (2^-9 relative a rounding). Over a few steps of warm-up, loss and gradient norm move by
# less than this.
OTHER_DEVICE_TOLERANCE = 0.02


def recorded_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Step → values of a metrics.jsonl. Of a step that occurs twice, the last values.

    A last line without an end is what a killed process leaves; it is left out.

    Raises: HarnessError "metrics-missing" or "metrics-invalid"; UnsafeFile.
    """
    if not there(path):
        raise HarnessError(
            "metrics-missing",
            f"there is no {path}",
            need="the metrics of a run that was trained",
            fix="harness verify RUN, with a run that has begun",
        )
    found: dict[int, dict[str, float]] = {}
    torn: Line | None = None
    try:
        for line in read_lines(path, path.parent):
            if torn is not None:
                raise _no_line(path, torn)
            if line.metrics is not None:
                found[line.metrics.step] = {name: float(getattr(line.metrics, name)) for name in VALUES}
            elif line.text.endswith(b"\n"):
                raise _no_line(path, line)
            else:
                torn = line
    except OSError as error:
        raise _invalid(path, error.strerror) from error
    return found


def _no_line(path: Path, line: Line) -> HarnessError:
    return _invalid(path, f"line {line.number}: {one_line(line.text[:80].decode(errors='replace').strip())}")


def _invalid(path: Path, got: str | None) -> HarnessError:
    fix = f"put a copy from before the change there, or remove the lines that are none: less {word(path)}"
    return HarnessError("metrics-invalid", f"{path} does not hold lines of metrics", got=got, fix=fix)


def compare_metrics(
    recorded: dict[int, dict[str, float]],
    again: dict[int, dict[str, float]],
    *,
    start: int,
    tolerance: float,
    device: str,
    note: str = "",
) -> Replay:
    """The verdict on the recomputed metrics. `tolerance` is relative; 0 means bit for bit."""
    common = sorted(step for step in again if step in recorded)
    if not common:
        why = f"no step is in both: recorded {_span(recorded)}, computed again {_span(again)}"
        return Replay(
            start=start,
            steps=0,
            device=device,
            tolerance=tolerance,
            largest_difference=None,
            status="cannot tell",
            note=why,
        )
    first, largest = None, 0.0
    for step in common:
        for name in VALUES:
            was, now = recorded[step][name], again[step][name]
            difference = _relative(was, now)
            largest = max(largest, difference)
            if first is None and difference > tolerance:
                first = f"{name} of step {step}: recorded {was!r}, computed again {now!r}"
    status = "equal" if first is None else "differs"
    return Replay(
        start=start,
        steps=len(common),
        device=device,
        tolerance=tolerance,
        largest_difference=largest,
        status=status,
        first=first,
        note=note,
    )


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def _span(steps: dict[int, dict[str, float]]) -> str:
    return f"{min(steps)} to {max(steps)}" if steps else "none"
