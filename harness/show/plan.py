"""The plan for a terminal of 100 columns. Nothing is printed here.

It shows the chosen plan, the parts of its memory, and the rejected plans with the reasons.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from harness.artifacts import Candidate, Levers, Plan
from harness.plan.calibrated import words
from harness.plan.measured import known_error, of_device
from harness.show.rows import Cells, cell, line, rows_table
from harness.units import format_bytes, format_count, format_seconds

_BAR = 60
_COLORS = ("blue", "cyan", "green", "yellow", "magenta", "red", "white", "bright_black", "bright_blue")
_BLOCKS = "█▓▒░"
# What the backward pass does not compute again, by the lever `remat`.
_KEPT = {"mlp": "the feed-forward products", "names": "the layers' products", "none": "all of each layer"}


def plan_view(plan: Plan) -> RenderableType:
    """The plan in parts: facts, the bar of memory, the table of candidates, notes."""
    parts: list[RenderableType] = [rows_table(f"plan for {plan.recipe}", _facts(plan))]
    if plan.chosen is not None:
        parts.append(memory_bar(plan, plan.chosen))
    parts.append(candidates_table(plan))
    parts += [line(f"note: {note}") for note in plan.notes]
    return Group(*parts)


def _facts(plan: Plan) -> list[tuple[str, str]]:
    usable = format_bytes(plan.usable_bytes)
    one = ", one memory for CPU and GPU" if plan.shared_memory else ""
    rows = [
        (
            "device",
            f"{plan.device}, {usable} usable"
            + (f" of {format_bytes(plan.free_bytes)} free" if plan.context_bytes else "")
            + one,
        )
    ]
    rows.append(
        (
            "recipe trains",
            f"{format_count(plan.parameters_trained)} of {format_count(plan.parameters_total)} parameters",
        )
    )
    chosen = plan.chosen
    if chosen is None:
        return [*rows, ("chosen", "nothing: no plan fits")]
    levers = chosen.levers
    rows.append(
        (
            "chosen",
            f"{'exact' if not chosen.deviations else 'approximate'}: {chosen.reason} ({chosen.source})",
        )
    )
    rows += [("deviation", text) for text in chosen.deviations]
    rows.append(("batch", _batch(levers)))
    rows.append(("sample", f"{levers.prompt_tokens} prompt tokens, cameras {', '.join(levers.cameras)}"))
    if chosen.seconds_per_step is not None:
        how = plan.calibrated
        error = words(how, levers.devices) if how else known_error(plan.device, levers.devices)
        if how is None and plan.device_uuids and not of_device(plan.device):
            error += "; harness calibrate measures it"
        rows.append(("predicted", f"{format_seconds(chosen.seconds_per_step)} a step ({error})"))
    rows.append(
        (
            "host memory",
            f"{format_bytes(chosen.host_bytes)}"
            + (f", with {' and '.join(levers.host)} of the state" if levers.host else ""),
        )
    )
    if levers.save == "streamed":
        rows.append(("saves", "streamed: training waits until a checkpoint is on the disk"))
    if levers.remat != "block":
        rows.append(("backward pass", f"keeps {_KEPT[levers.remat]}: faster, and takes more device memory"))
    rows.append(("disk", f"{format_bytes(chosen.disk_bytes)} for two checkpoints"))
    phases = ", ".join(f"{name} {format_bytes(size)}" for name, size in chosen.phases.items())
    rows += [("phases", phases)] if len(chosen.phases) > 1 else []
    together = ", ".join(f"{name} {format_bytes(size)}" for name, size in chosen.shared_phases.items())
    rows += [("device and host", together)] if together else []
    return rows + [(name, f"unknown: {why}") for name, why in chosen.unknown.items()]


def _batch(levers: Levers) -> str:
    of = f" of {levers.hosts} hosts" if levers.hosts > 1 else ""
    devices = (
        f" x {levers.devices} devices{of}" + (f" (state in {levers.fsdp} shards)" if levers.fsdp > 1 else "")
        if levers.devices > 1
        else ""
    )
    rows = levers.microbatch * levers.accumulation_steps * levers.devices
    return f"{rows} = microbatch {levers.microbatch} x {levers.accumulation_steps} accumulated{devices}"


def memory_bar(plan: Plan, chosen: Candidate) -> RenderableType:
    """The parts of the memory as a bar over all that is free, and each part with its bytes."""
    parts = [(name, size) for name, size in chosen.breakdown.items() if size > 0]
    if plan.context_bytes:
        parts.append(("context", plan.context_bytes))
    if plan.free_bytes is not None:
        parts.append(("headroom", max(0, plan.free_bytes - sum(size for _, size in parts))))
    total = sum(size for _, size in parts) or 1
    bar, legend = Text(), []
    for index, (name, size) in enumerate(parts):
        color, block = (
            _COLORS[index % len(_COLORS)],
            "·" if name == "headroom" else _BLOCKS[index % len(_BLOCKS)],
        )
        bar.append(block * max(1 if size else 0, round(_BAR * size / total)), style=color)
        legend.append(Text.assemble((block, color), cell(f" {name} {format_bytes(size)}")))
    grid = Cells()
    for start in range(0, len(legend), 3):
        grid.row(*legend[start : start + 3])
    caption = Text(
        "weights, gradients, moments and average are counted, the rest is what the compiler adds to them",
        style="dim",
    )
    return Group(Text("memory of a device"), bar, grid, caption)


def candidates_table(plan: Plan) -> Cells:
    """One row per candidate, the chosen one first."""
    table = Cells("plans looked at", framed=True)
    table.show_header = True
    table.column("plan", max_width=34)
    for name in ("micro", "device", "host", "step"):
        table.column(name, right=True)
    table.column("verdict", max_width=30)
    for candidate in plan.candidates:
        chosen = candidate is plan.chosen or candidate == plan.chosen
        verdict = (
            "chosen"
            if chosen
            else "fits, slower"
            if candidate.verdict == "fits"
            else candidate.reason.rpartition(": ")[2]
        )
        step = format_seconds(candidate.seconds_per_step) if candidate.seconds_per_step is not None else "?"
        size = ("≥ " if candidate.source == "counted" else "") + format_bytes(candidate.device_bytes)
        row = (
            plan_name(candidate),
            candidate.levers.microbatch,
            size,
            format_bytes(candidate.host_bytes),
            step,
            verdict,
        )
        table.row(*row, style="bold" if chosen else "")
    return table


def plan_name(candidate: Candidate) -> str:
    """A plan in a few words: its changes, and where the state lies."""
    levers = candidate.levers
    words = [
        _change(key, value) for key, value in candidate.changes.items() if not key.endswith(".lora")
    ] or ["exact"]
    if str(candidate.changes.get("train.trained")).startswith("lora"):
        words = [word for word in words if word != "no EMA"]
    words += [f"{', '.join(levers.host)} on the host"] if levers.host else []
    words += [f"{levers.fsdp} shards"] if levers.fsdp > 1 else []
    words += ["streamed saves"] if levers.save == "streamed" else []
    words += ["chunked attention"] if levers.attention == "chunked" else []
    words += [f"keeps {_KEPT[levers.remat]}"] if levers.remat != "block" else []
    return "; ".join(words)


def _change(key: str, value: object) -> str:
    names = {
        ("train.ema_decay", None): "no EMA",
        ("train.trained", "lora"): "LoRA",
        ("train.trained", "lora_frozen_vision"): "LoRA, vision frozen",
        ("train.optimizer.moments", "int8"): "8-bit moments",
        ("train.frozen", "int8"): "frozen in 8 bits",
        ("train.frozen", "int4"): "frozen in 4 bits",
    }
    return names.get((key, value), f"{key}={value}") if isinstance(value, str | None) else f"{key}={value}"
