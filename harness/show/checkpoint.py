"""A checkpoint as tables for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts import Checkpoint, GroupReport, Moved
from harness.show.rows import Cells, rows_table
from harness.units import format_bytes, format_count, format_seconds

MOST_FINDINGS = 20
Row = tuple[str, str]


def checkpoint_table(checkpoint: Checkpoint) -> Group:
    """Steps, interrupted saves, parameters by group and adapters; and the movement, if it was asked for."""
    rows = [
        ("layout", checkpoint.layout or "unknown"),
        *_pytorch(checkpoint),
        *_saves(checkpoint),
        *_parameters(checkpoint),
        *_arrays(checkpoint),
    ]
    if checkpoint.partial:
        rows.append(("partial", "something is missing or could not be read: this answer is not the whole"))
    rows += [("finding", text) for text in checkpoint.findings[:MOST_FINDINGS]]
    if len(checkpoint.findings) > MOST_FINDINGS:
        rows.append(("finding", f"and {len(checkpoint.findings) - MOST_FINDINGS} more (--json lists them)"))
    return Group(
        rows_table(f"checkpoint {checkpoint.path}", rows),
        *([moved_table(checkpoint.moved)] if checkpoint.moved else []),
    )


def _pytorch(checkpoint: Checkpoint) -> list[Row]:
    """Which PyTorch program saved it, and how many tensors there are."""
    if checkpoint.kind is None:
        return []
    pipeline = [] if checkpoint.pipeline is None else [("pipeline", checkpoint.pipeline)]
    return [("saved by", checkpoint.kind), *pipeline, ("tensors", f"{checkpoint.tensors or 0:,}")]


def _saves(checkpoint: Checkpoint) -> list[Row]:
    """Steps, interrupted saves, and the step that is described."""
    rows: list[Row] = []
    for step in checkpoint.steps:
        state = "whole" if step.complete else f"incomplete, lacks {', '.join(step.missing)}"
        name = "step" if step.step is None else f"step {step.step}"
        rows.append(
            (
                name,
                f"{state}, {format_bytes(step.bytes)}: "
                + ", ".join(f"{item.name} {format_bytes(item.bytes)}" for item in step.items),
            )
        )
    for save in checkpoint.interrupted:
        advice = "safe to delete" if save.safe_to_delete else "do not delete"
        rows.append(
            (
                "interrupted",
                (
                    f"{save.path}, {format_seconds(save.age_s)} old, lacks"
                    f" {', '.join(save.missing) or 'its end'}: {advice}, {save.reason}"
                ),
            )
        )
    if checkpoint.step is not None and len(checkpoint.steps) > 1:
        rows.append(("described", f"step {checkpoint.step}"))
    return rows


def _parameters(checkpoint: Checkpoint) -> list[Row]:
    """Parameters by group and in total, adapters, and the average."""
    rows = [(name, _group(group)) for name, group in checkpoint.parameters.items()]
    trained = (
        ""
        if checkpoint.parameters_trained is None
        else f", {format_count(checkpoint.parameters_trained)} trained"
    )
    rows.append(("parameters", format_count(checkpoint.parameters_total) + trained))
    if checkpoint.base is not None:
        rows.append(("base", f"holds only what was trained; the rest is in {checkpoint.base}"))
    rows.append(("LoRA", _lora(checkpoint)))
    ema = {None: "unknown", True: "params holds the average, train_state the raw parameters", False: "none"}[
        checkpoint.ema
    ]
    return [*rows, ("EMA", ema)]


def _arrays(checkpoint: Checkpoint) -> list[Row]:
    """The findings in the arrays, if they were read."""
    rows: list[Row] = []
    if checkpoint.leaves:
        read = [leaf for leaf in checkpoint.leaves if leaf.sha256]
        finite = (
            "all finite" if not checkpoint.non_finite else f"{checkpoint.non_finite:,} elements not finite"
        )
        rows.append(
            (
                "arrays",
                f"{len(read)} of {len(checkpoint.leaves)} read, {finite};"
                " --json lists the sha256 and norm of each",
            )
        )
    for adapter in checkpoint.adapters:
        rank = (
            "zero"
            if adapter.effective_rank is None
            else "effective rank {:.1f} ({:.1f} to {:.1f})".format(
                *(adapter.effective_rank[i] for i in (1, 0, 2))
            )
        )
        share = "" if adapter.relative is None else f", {adapter.relative:.2%} of the weight's"
        rows.append(
            (
                "adapter",
                f"{adapter.path}: {rank} of {adapter.rank}, norm of A·B"
                f" {_norm(adapter.product_norm, '.3g')}{share}",
            )
        )
    return rows


def moved_table(moved: Moved) -> Cells:
    """The distance of each part from the reference."""
    step = "" if moved.against_step is None else f" (step {moved.against_step})"
    table = Cells(
        f"moved since {moved.against}{step}",
        ("part", "moved by", "relative", "elements changed"),
        min_width=78,
    )
    for part in moved.groups:
        table.row(
            part.name,
            _norm(part.update_norm, ".3g"),
            "–" if part.relative is None else f"{part.relative:.2e}",
            f"{part.changed:.1%}",
        )
    notes = [*moved.notes]
    notes += [
        f"{len(paths)} parameters {what}"
        for what, paths in (("are only here", moved.only_here), ("are only there", moved.only_there))
        if paths
    ]
    notes += (
        [f"{len(moved.not_compared)} parameters could not be compared: {', '.join(moved.not_compared[:3])}"]
        if moved.not_compared
        else []
    )
    table.note("\n".join(notes))
    return table


def _group(group: GroupReport) -> str:
    trained = f", {format_count(group.trained)} trained" if group.trained is not None else ""
    finite = f", {group.non_finite} not finite" if group.non_finite else ""
    known = group.norm is not None or group.norm_overflows
    norm = f", norm {_norm(group.norm, '.4g')}" if known else ""
    return (
        f"{format_count(group.parameters)} parameters{trained}, {format_bytes(group.bytes)},"
        f" {', '.join(group.dtypes)}{norm}{finite}"
    )


def _norm(norm: float | None, form: str) -> str:
    return "not finite" if norm is None else format(norm, form)


def _lora(checkpoint: Checkpoint) -> str:
    if checkpoint.lora.present is None:
        return "unknown"
    if not checkpoint.lora.present:
        return "none"
    return f"{format_count(checkpoint.lora.parameters)} parameters, " + ", ".join(
        f"{name} rank {rank}" for name, rank in checkpoint.lora.rank.items()
    )
