"""The doctor's findings as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Diagnosis, Finding

_STYLE = {"error": "bold red", "warning": "yellow", "unknown": "cyan"}


def doctor_table(diagnosis: Diagnosis) -> Table:
    """What was found, worst first, each with its fix; then what is well, and what was not looked at because nothing needs it."""
    table = Table(title=_title(diagnosis), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for names, finding in _together(diagnosis.findings):
        allowed = " (allowed)" if finding.severity == "error" and finding.check in diagnosis.allowed else ""
        table.add_row(finding.severity + allowed, f"{names}: {finding.got}", style=_STYLE[finding.severity])
        table.add_row("  need", finding.need)
        table.add_row("  fix", finding.fix)
    table.add_row("well", ", ".join(diagnosis.passed) or "nothing", style="green")
    if diagnosis.not_needed:
        table.add_row("not needed", "; ".join(f"{name} ({why})" for name, why in diagnosis.not_needed.items()), style="dim")
    return table


def _together(findings: list[Finding]) -> list[tuple[str, Finding]]:
    """The findings, those that say the same once, under the names of all their checks."""
    same: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        same.setdefault((finding.severity, finding.got, finding.need, finding.fix), []).append(finding)
    return [(", ".join(dict.fromkeys(one.check for one in several)), several[0]) for several in same.values()]


def _title(diagnosis: Diagnosis) -> str:
    counts = {"error": len(diagnosis.errors)} | {kind: _count(diagnosis, kind) for kind in ("warning", "unknown")}
    named = [f"{number} {kind}{'s' * (number != 1 and kind != 'unknown')}" for kind, number in counts.items()]
    allowed = _count(diagnosis, "error") - len(diagnosis.errors)
    return ", ".join([*named, *([f"{allowed} allowed"] if allowed else []), f"{len(diagnosis.passed)} checks well"])


def _count(diagnosis: Diagnosis, severity: str) -> int:
    return sum(finding.severity == severity for finding in diagnosis.findings)
