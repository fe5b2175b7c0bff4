"""The doctor's findings as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Diagnosis

_STYLE = {"error": "bold red", "warning": "yellow", "unknown": "cyan"}


def doctor_table(diagnosis: Diagnosis) -> Table:
    """What was found, worst first, each with its fix; then what is well."""
    table = Table(title=_title(diagnosis), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        allowed = " (allowed)" if finding.severity == "error" and finding.check in diagnosis.allowed else ""
        table.add_row(finding.severity + allowed, f"{finding.check}: {finding.got}", style=_STYLE[finding.severity])
        table.add_row("  need", finding.need)
        table.add_row("  fix", finding.fix)
    table.add_row("well", ", ".join(diagnosis.passed) or "nothing", style="green")
    return table


def _title(diagnosis: Diagnosis) -> str:
    errors, others = len(diagnosis.errors), len(diagnosis.findings) - len(diagnosis.errors)
    return f"{errors} error{'s' * (errors != 1)}, {others} other finding{'s' * (others != 1)}, {len(diagnosis.passed)} checks well"
