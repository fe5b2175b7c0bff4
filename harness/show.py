"""Artifacts as tables for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Checkpoint, Comparison, Dataset, Machine, NormStats, Plan, Prediction, Statistic
from harness.units import format_bytes, format_count, format_seconds

# So many times of a chunk fit a terminal of 80 columns.
_TIMES = 6


def _rows(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _known(value: object, unknown: dict[str, str], field: str) -> str:
    return f"unknown ({unknown.get(field, 'no reason given')})" if value is None else str(value)


def machine_table(machine: Machine) -> Table:
    """The GPUs, and what the host has."""
    host = machine.host
    rows = []
    for gpu in machine.gpus:
        hidden = "" if gpu.visible else ", hidden by CUDA_VISIBLE_DEVICES"
        free = f"{format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}"
        rows.append((f"GPU {gpu.index}", gpu.error or f"{gpu.name} (compute capability {gpu.compute_capability}), {free}{hidden}"))
        rows += [("", f"  process {process.pid} {process.name or ''} holds {format_bytes(process.used_bytes)}") for process in gpu.foreign_processes or []]
    if not machine.gpus:
        rows.append(("GPU", machine.gpu_error or "none"))
    rows.append(("driver", _known(machine.driver_version, machine.unknown, "driver_version")))
    rows.append(("memory", f"{format_bytes(host.ram_available_bytes)} available of {format_bytes(host.ram_total_bytes)}"))
    rows.append(("cores", _known(host.cores, host.unknown, "cores")))
    rows.append(("/dev/shm", format_bytes(host.shm_bytes)))
    rows += [(f"disk {disk.path}", f"{format_bytes(disk.free_bytes)} free" + ("" if disk.writable else ", not writable")) for disk in host.disks]
    rows.append(("container", f"{host.container or 'unknown'}" + (", WSL2" if host.wsl else "")))
    return _rows("machine", rows)


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
    return _rows(f"plan for {plan.recipe}", rows)


def dataset_table(dataset: Dataset) -> Table:
    """Counts, features and hash of a dataset."""
    rows = [
        ("source", dataset.source + (f" @ {dataset.revision}" if dataset.revision else "")),
        ("format", f"LeRobot {dataset.format_version}, {dataset.fps:g} fps"),
        ("episodes", f"{dataset.episodes:,}"),
        ("frames", f"{dataset.frames:,}"),
        ("tasks", f"{len(dataset.tasks)}: " + "; ".join(dataset.tasks[:5]) + (" …" if len(dataset.tasks) > 5 else "")),
        ("features", ", ".join(f"{name} {feature.dtype}{feature.shape}" for name, feature in dataset.features.items())),
        ("prompt", f"longest {dataset.longest_prompt_tokens} tokens, computed with {dataset.prompt_tokens}"),
        ("size", format_bytes(dataset.total_bytes)),
        ("sha256", dataset.sha256),
    ]
    return _rows("dataset", rows + [("finding", text) for text in dataset.findings])


def stats_table(stats: NormStats) -> Table:
    """Mean, spread and quantiles of every dimension."""
    table = Table(title=f"statistics of {stats.frames:,} frames, horizon {stats.action_horizon}", title_justify="left", box=None, pad_edge=False)
    for name in ("", "mean", "std", "q01", "q99"):
        table.add_column(name, justify="right" if name else "left")
    for key, one in stats.norm_stats.items():
        for i in range(len(one.mean)):
            table.add_row(f"{key}[{i}]", *(f"{values[i]:.4f}" for values in (one.mean, one.std, one.q01, one.q99)))
    for finding in stats.findings:
        table.add_row(f"{finding.key}[{finding.dimension}]", finding.problem, "", "", finding.fix)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Ours beside theirs, dimension by dimension; the last column is the dimension's largest difference, of our q99 - q01."""
    names: tuple[Statistic, ...] = ("mean", "std", "q01", "q99")
    table = Table(title=f"ours → {comparison.path}", title_justify="left", box=None, pad_edge=False)
    for name in ("", *names, "of the spread"):
        table.add_column(name, justify="right" if name else "left")
    found = {(d.key, d.dimension, d.statistic): d for d in comparison.differences}
    for key, dimension in sorted({(d.key, d.dimension) for d in comparison.differences}, key=lambda pair: (pair[0] != "state", pair[1])):
        cells = [found[key, dimension, name] for name in names]
        shares = [cell.share for cell in cells if cell.share is not None]
        equal = all(cell.ours == cell.theirs for cell in cells)
        largest = f"{100 * max(shares):.2f} %" if shares else "equal" if equal else "differs; ours has no spread"
        table.add_row(f"{key}[{dimension}]", *(f"{cell.ours:.4f} → {cell.theirs:.4f}" for cell in cells), largest)
    for whose, lacking in (("only ours", comparison.only_ours), ("only theirs", comparison.only_theirs)):
        for group, count in lacking.items():
            if count:
                table.add_row(group, f"{count} more dimensions are {whose}")
    return table


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
    return _rows(f"checkpoint {checkpoint.path}", rows + [("finding", text) for text in checkpoint.findings])


def prediction_table(prediction: Prediction) -> Table:
    """Predicted and recorded actions, at times spread over the chunk, and the mean absolute error of every dimension."""
    horizon = prediction.action_horizon
    times = sorted({round(i * (horizon - 1) / (_TIMES - 1)) for i in range(_TIMES)})
    title = f"{prediction.task}: episode {prediction.episode}, frame {prediction.frame}, at {len(times)} of {horizon} times"
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    table.add_column("actions")
    for time in times:
        table.add_column(f"+{time}" + ("*" if prediction.is_pad[time] else ""), justify="right")
    table.add_column("mean |error|", justify="right")
    for d, error in enumerate(prediction.mean_absolute_error):
        table.add_row(f"[{d}] recorded".replace("[", "\\["), *(f"{prediction.recorded[time][d]:.3f}" for time in times), "")
        table.add_row("    predicted", *(f"{prediction.predicted[time][d]:.3f}" for time in times), f"{error:.3g}")
    if any(prediction.is_pad):
        table.caption = "* past the episode's end: its last action repeated, not counted in the error"
    return table


def _lora(checkpoint: Checkpoint) -> str:
    if checkpoint.lora.present is None:
        return "unknown"
    if not checkpoint.lora.present:
        return "none"
    return f"{format_count(checkpoint.lora.parameters)} parameters, " + ", ".join(f"{name} rank {rank}" for name, rank in checkpoint.lora.rank.items())
