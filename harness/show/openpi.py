"""An openpi command line as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group, RenderableType

from harness.artifacts import OpenpiCommand
from harness.show.rows import finding_rows, rows_table
from harness.units import format_bytes, format_count

_STYLE = {"error": "bold red", "warning": "yellow", "unknown": "cyan"}


def openpi_view(command: OpenpiCommand) -> RenderableType:
    """The effect of the command, and below it its faults, each with its fix."""
    rows = [("model", command.model), ("trained", _who(command))]
    cut = [("left out", f"the shell's own: {text}") for text in command.cut]
    if command.parameters_trained is None:
        label = "says" if command.trainer == "lerobot" else "differs"
        rows += [(label, text) for text in command.deviations] + cut
        return Group(rows_table(_title(command), rows), _findings(command))
    if command.param_norm is not None:
        rows.append(("param_norm", f"{command.param_norm:.3f} at step 0, from the released weights"))
    rows.append(("needs", _bytes(command)))
    rows += [("deviation", text) for text in command.deviations]
    if command.meant:
        rows.append(
            (
                "meant" if command.command_meant or _error(command, "lora-trains-everything") else "recipe",
                command.meant,
            )
        )
    if command.command_meant:
        rows.append(("openpi", command.command_meant))
    rows += [
        (name, f"unknown: {why}")
        for name, why in command.unknown.items()
        if name not in ("device_bytes", "fits")
    ]
    parts: list[RenderableType] = [rows_table(_title(command), [*rows, *cut])]
    return Group(*parts, _findings(command)) if command.findings else Group(*parts)


def _title(command: OpenpiCommand) -> str:
    starts = {"lerobot": "", "openpi-pytorch": "openpi scripts/train_pytorch.py "}
    # Another trainer's command begins with its own program.
    openpi = "openpi " if command.config else ""
    return starts.get(command.trainer, openpi) + command.command


def _who(command: OpenpiCommand) -> str:
    if command.parameters_trained is None:
        return f"unknown: {command.unknown.get('parameters_trained', 'no reason given')}"
    return (
        f"{command.parameters_trained:,} of {command.parameters_total:,} parameters"
        f" ({format_count(command.parameters_trained)})"
    )


def _bytes(command: OpenpiCommand) -> str:
    if command.device_bytes is None:
        return f"unknown: {command.unknown.get('device_bytes', 'no reason given')}"
    size = f"{format_bytes(command.device_bytes)} on each device"
    if command.plan is None:
        return f"{size} (no card named: --gpu NAME says whether it fits)"
    return (
        f"{size}; {command.plan.device} has {format_bytes(command.plan.usable_bytes)} usable:"
        f" {'fits' if command.fits else 'does not fit'}"
    )


def _error(command: OpenpiCommand, check: str) -> bool:
    return any(finding.check == check for finding in command.findings)


def _findings(command: OpenpiCommand) -> Group:
    rows = []
    for finding in command.findings:
        rows += finding_rows(
            finding.severity,
            f"{finding.check}: {finding.got}",
            _STYLE[finding.severity],
            need=finding.need,
            fix=finding.fix,
        )
    return rows_table("", rows)
