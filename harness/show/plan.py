"""The plan as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Plan
from harness.show.rows import rows_table
from harness.units import format_bytes, format_count


def plan_table(plan: Plan) -> Table:
    """What was chosen or rejected, with bytes and reasons."""
    rows = [
        ("device", plan.device + (f", {format_bytes(plan.usable_bytes)} usable" if plan.usable_bytes is not None else "")),
        ("trained", f"{format_count(plan.parameters_trained)} of {format_count(plan.parameters_total)} parameters"),
    ]
    for candidate in plan.candidates:
        levers = candidate.levers
        rows.append((candidate.verdict, f"{candidate.reason} ({candidate.source})"))
        rows.append(
            ("", f"microbatch {levers.microbatch} x {levers.accumulation_steps}, {levers.prompt_tokens} prompt tokens, cameras {', '.join(levers.cameras)}")
        )
        rows.append(("checkpoints", f"{format_bytes(candidate.disk_bytes)} of disk (two kept)"))
        rows += [("deviation", text) for text in candidate.deviations]
        rows += [(name, f"unknown: {reason}") for name, reason in candidate.unknown.items()]
    return rows_table(f"plan for {plan.recipe}", rows)
