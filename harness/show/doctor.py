"""The doctor's findings as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts import Diagnosis
from harness.show.rows import Row, finding_rows, rows_table

_STYLE = {"error": "bold red", "warning": "yellow", "unknown": "cyan"}


def doctor_table(diagnosis: Diagnosis) -> Group:
    """What was found, worst first, each with its fix; then what is well."""
    rows = []
    for finding in diagnosis.findings:
        allowed = " (allowed)" if finding.severity == "error" and finding.check in diagnosis.allowed else ""
        said = f"{finding.check}: {finding.got}"
        rows += finding_rows(finding.severity + allowed, said, _STYLE[finding.severity], need=finding.need, fix=finding.fix)
    return rows_table(_title(diagnosis), [*rows, Row("well", ", ".join(diagnosis.passed) or "nothing", "green")])


def _title(diagnosis: Diagnosis) -> str:
    errors, others = len(diagnosis.errors), len(diagnosis.findings) - len(diagnosis.errors)
    return f"{errors} error{'s' * (errors != 1)}, {others} other finding{'s' * (others != 1)}, {len(diagnosis.passed)} checks well"
