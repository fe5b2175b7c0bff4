"""A checkpoint as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Checkpoint
from harness.show.rows import rows_table
from harness.units import format_bytes, format_count, format_seconds


def checkpoint_table(checkpoint: Checkpoint) -> Table:
    """Steps, interrupted saves, parameters by group and adapters."""
    rows: list[tuple[str, str]] = [("layout", checkpoint.layout or "unknown")]
    for step in checkpoint.steps:
        state = "whole" if step.complete else f"incomplete, lacks {', '.join(step.missing)}"
        rows.append((f"step {step.step}", f"{state}, {format_bytes(step.bytes)}: " + ", ".join(item.name for item in step.items)))
    for save in checkpoint.interrupted:
        advice = "safe to delete" if save.safe_to_delete else "do not delete"
        rows.append(("interrupted", f"{save.path}, {format_seconds(save.age_s)} old, lacks {', '.join(save.missing) or 'its end'}: {advice}, {save.reason}"))
    for name, group in checkpoint.parameters.items():
        trained = f", {format_count(group.trained)} trained" if group.trained is not None else ""
        finite = f", {group.non_finite} not finite" if group.non_finite else ""
        rows.append((name, f"{format_count(group.parameters)} parameters{trained}, {format_bytes(group.bytes)}, {', '.join(group.dtypes)}{finite}"))
    rows.append(("parameters", format_count(checkpoint.parameters_total)))
    rows.append(("LoRA", _lora(checkpoint)))
    return rows_table(f"checkpoint {checkpoint.path}", rows + [("finding", text) for text in checkpoint.findings])


def _lora(checkpoint: Checkpoint) -> str:
    if checkpoint.lora.present is None:
        return "unknown"
    if not checkpoint.lora.present:
        return "none"
    return f"{format_count(checkpoint.lora.parameters)} parameters, " + ", ".join(f"{name} rank {rank}" for name, rank in checkpoint.lora.rank.items())
