"""A calibration as tables: what it holds for, each plan predicted and measured, ceilings, what is lacking."""

from __future__ import annotations

from rich.console import Group, RenderableType

from harness.artifacts import Calibration, CalibrationStage, Product
from harness.plan.calibrated import predicted_now
from harness.plan.measured import name_of
from harness.show.rows import Cells, line, rows_table
from harness.units import format_bytes, format_seconds

_LINKS = {
    "copy_bytes_per_s": "copy",
    "to_host_bytes_per_s": "to the host",
    "to_device_bytes_per_s": "to the card",
    "both_ways_bytes_per_s": "both ways",
}


def calibration_view(found: Calibration) -> RenderableType:
    """The facts, the plans, the ceilings, and the stages that say nothing or must not be used."""
    parts: list[RenderableType] = [rows_table(f"calibration of {found.card}", _facts(found))]
    if any(stage.plan for stage in found.stages):
        parts.append(plans_table(found))
    rates = [row for stage in found.stages if stage.state == "measured" for row in _rates(stage)]
    parts += [rows_table("", rates)] if rates else []
    parts += [line(f"note: {text}") for text in _lacking(found)]
    return Group(*parts)


def _facts(found: Calibration) -> list[tuple[str, str]]:
    versions = f"jax {found.jax}" + (f", {found.plugin}" if found.plugin else "")
    rows = [
        ("measured", f"{found.measured}; driver {found.driver or 'unknown'}, {versions}"),
        ("memory", format_bytes(found.total_bytes)),
    ]
    if found.revision or found.step_sha256:
        rows.append(("source", found.revision or f"step {(found.step_sha256 or '')[:12]}"))
    load = [stage.during for stage in found.stages if stage.during is not None]
    hottest = max(
        (one.most_temperature_c for one in load if one.most_temperature_c is not None), default=None
    )
    power = max((one.most_power_w for one in load if one.most_power_w is not None), default=None)
    if hottest is not None and power is not None:
        rows.append(("at most", f"{power:.0f} W, {hottest:.0f} degrees"))
    held = sorted({reason for one in load for reason in one.throttle})
    rows += [("clock held by", ", ".join(held))] if held else []
    return rows + ([("how", found.how)] if found.how else [])


def plans_table(found: Calibration) -> Cells:
    """A row for each plan: bytes planned, compiled and used, seconds predicted and measured."""
    table = Cells("plans, as they ran", framed=True)
    table.show_header = True
    table.column("plan", max_width=36)
    for name in ("planned", "compiled", "peak", "predicted", "measured", "off"):
        table.column(name, right=True)
    for stage in found.stages:
        plan = stage.plan
        if plan is None:
            continue
        predicted = predicted_now(found, plan)
        off = "?" if predicted is None else f"{100 * (predicted / plan.step_s - 1):+.0f} %"
        table.row(
            name_of(stage, found.total_bytes) + (" (not used)" if stage.marks else ""),
            *(_size(size) for size in (plan.planned_bytes, plan.compiled_bytes, plan.peak_bytes)),
            "?" if predicted is None else format_seconds(predicted),
            format_seconds(plan.step_s),
            off,
        )
    return table


def _size(size: int | None) -> str:
    return "?" if size is None else format_bytes(size)


def _rates(stage: CalibrationStage) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if stage.ceilings is not None:
        rows += [("product", _product(one)) for one in stage.ceilings.products]
        for key, name in _LINKS.items():
            rate, why = getattr(stage.ceilings, key), stage.ceilings.unknown.get(key, "no reason given")
            rows.append((name, f"unknown: {why}" if rate is None else f"{rate / 1e9:,.1f} GB/s"))
    if stage.context is not None:
        why = stage.context.unknown.get("context_bytes", "no reason given")
        size = stage.context.context_bytes
        rows.append(("context", f"unknown: {why}" if size is None else format_bytes(size)))
    for one in stage.sampling or []:
        rows.append(
            (
                "one chunk",
                f"{1e3 * one.median_s:.1f} ms: {one.batch} row(s), {one.cameras} cameras,"
                f" {one.prompt_tokens} prompt tokens, {one.sampling_steps} steps, by {one.program}",
            )
        )
    return rows


def _product(one: Product) -> str:
    how = f"{one.chained} in one program" if one.chained > 1 else "one a call, with its dispatch"
    return f"{one.m} x {one.k} x {one.n}: {one.flops_per_s / 1e12:,.1f} TFLOP/s ({how})"


def _lacking(found: Calibration) -> list[str]:
    texts = []
    for stage in found.stages:
        if stage.state != "measured":
            texts.append(f"{stage.name}: {stage.state}: {stage.reason or 'no reason given'}")
        texts += [f"{stage.name} is not used: {mark}" for mark in stage.marks]
        texts += [f"{stage.name}: {stage.note}"] if stage.note else []
        if stage.plan is not None and "limit_bytes" in stage.plan.unknown:
            texts.append(f"{stage.name}: {stage.plan.unknown['limit_bytes']}")
    return texts + [f"{name}: {why}" for name, why in found.unknown.items()]
