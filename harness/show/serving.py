"""A server's times, and a check of what it serves, as tables for a terminal. Nothing is printed here."""

from __future__ import annotations

from harness.artifacts import ServeCheck, Serving
from harness.show.rows import Cells
from harness.units import format_seconds

# Titles of these tables fit on one line of a terminal of 80 columns.
_WIDTH = 78


def serving_table(serving: Serving) -> Cells:
    """Percentiles of each stage of a request, and what became of the requests."""
    outcomes = ", ".join(
        f"{count:,} {name}"
        for name, count in (
            ("answered", serving.answered),
            ("refused", serving.refused),
            ("failed", serving.failed),
            ("lost", serving.lost),
        )
    )
    title = f"{format_seconds(serving.seconds)}, {serving.connections:,} connections: {outcomes}"
    table = Cells(title, ("stage, ms", "p50", "p95", "p99"), min_width=_WIDTH)
    for name, stage in serving.stages.items():
        values = (stage.p50_ms, stage.p95_ms, stage.p99_ms)
        table.row(name, *("-" if value is None else f"{value:.2f}" for value in values))
    notes = []
    if serving.prompts_cut:
        notes.append(f"{serving.prompts_cut:,} prompts were longer than the model's: it saw their beginning")
    if serving.record:
        notes.append(f"recorded: {serving.record}")
    table.note("\n".join(notes))
    return table


def serve_check_table(check: ServeCheck) -> Cells:
    """The verdict, and either the first difference or how far from equal bits the actions are."""
    table = Cells(f"{check.verdict}: {len(check.frames)} frames of {check.dataset}", ("", ""))
    table.row("checkpoint", check.checkpoint)
    table.row("device", check.device)
    if check.largest is not None:
        bits = "0: the same bits" if check.largest == 0 else f"{check.largest:.3g} of what is allowed"
        table.row("largest difference", bits)
    table.row("tolerance of normalized actions", f"{check.tolerance:g}")
    if check.first_difference is not None:
        table.row("first difference", check.first_difference)
    return table
