"""The state of a run as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group

from harness.artifacts import Status
from harness.show.rows import rows_table
from harness.units import format_bytes, format_seconds

WIDTH = 30
_BLOCKS = "▁▂▃▄▅▆▇█"


def status_table(status: Status) -> Group:
    """State, progress, pace, loss and memory."""
    rows = [("state", f"{status.state}: {status.reason}"), ("progress", _progress(status))]
    if status.eta_s is not None:
        by = " by the plan, whose card was calibrated" if status.eta_by == "calibration" else ""
        rows.append(("left", f"about {format_seconds(status.eta_s)}{by}"))
    if status.losses:
        rows.append(
            (
                "loss",
                f"{_number(status.loss)}  {sparkline(status.losses)}  since step {status.losses_since_step}",
            )
        )
        rows.append(
            ("grad_norm", f"{_number(status.grad_norm)}, learning rate {_rate(status.learning_rate)}")
        )
    if status.held_out_step is not None:
        rows.append(("held-out loss", f"{_number(status.held_out_loss)} at step {status.held_out_step:,}"))
    if status.evaluation is not None:
        rows.append(("simulator", status.evaluation))
    if status.step_s is not None:
        share = (
            f", {status.step_s / status.expected_step_s:.2f} of the plan's"
            f" {format_seconds(status.expected_step_s)}"
            if status.expected_step_s
            else ""
        )
        rows.append(
            (
                "pace",
                f"{format_seconds(status.step_s)} a step{share or ', the plan expects nothing'};"
                f" waiting for data {format_seconds(status.data_s)}",
            )
        )
    rows.append(("memory", _memory(status)))
    rows.append(
        ("saved", "no whole checkpoint" if status.saved_step is None else f"step {status.saved_step:,}")
    )
    return rows_table(
        f"run {status.run}" + (f", recipe {status.recipe}" if status.recipe else ""),
        rows + [("finding", text) for text in status.findings],
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _rate(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _progress(status: Status) -> str:
    if status.steps is None:
        return f"{status.step:,} steps logged, of an unknown number"
    share = min(1.0, status.step / status.steps) if status.steps else 0.0
    return (
        f"{'━' * round(share * WIDTH)}{'─' * (WIDTH - round(share * WIDTH))} {status.step:,} of"
        f" {status.steps:,} steps, {share:.0%}"
    )


def _memory(status: Status) -> str:
    planned = f"planned {format_bytes(status.predicted_bytes)}"
    if status.peak_bytes is None:
        return f"{planned}; peak unknown ({status.unknown.get('peak_bytes', 'not read')})"
    limit = f" of {format_bytes(status.limit_bytes)}" if status.limit_bytes is not None else ""
    return f"peak {format_bytes(status.peak_bytes)}{limit}, {planned}"


def sparkline(values: Sequence[float | None]) -> str:
    """One character per value, from the least to the greatest. "×" stands for a value that is not finite."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # The distance of two large values of opposite sign is no finite number; that of their halves is.
    shrink = 1.0 if math.isfinite(high - low) else 0.5
    low, high = low * shrink, high * shrink
    top = len(_BLOCKS) - 1
    return "".join(
        (
            "×"
            if v is None or not math.isfinite(v)
            else _BLOCKS[round((v * shrink - low) / (high - low) * top) if high > low else 0]
        )
        for v in values
    )
