"""The doctor's findings as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts import Diagnosis, Finding
from harness.show.rows import Row, finding_rows, rows_table

_STYLE = {"error": "bold red", "warning": "yellow", "unknown": "cyan"}


def doctor_table(diagnosis: Diagnosis) -> Group:
    """The findings, worst first, each with its fix; then the checks that passed or were not needed."""
    rows = []
    for names, finding in _together(diagnosis.findings):
        allowed = " (allowed)" if finding.severity == "error" and finding.check in diagnosis.allowed else ""
        said = f"{names}: {finding.got}"
        rows += finding_rows(
            finding.severity + allowed, said, _STYLE[finding.severity], need=finding.need, fix=finding.fix
        )
    rows.append(Row("well", ", ".join(diagnosis.passed) or "nothing", "green"))
    if diagnosis.not_needed:
        rows.append(
            Row(
                "not needed",
                "; ".join(f"{name} ({why})" for name, why in diagnosis.not_needed.items()),
                "dim",
            )
        )
    return rows_table(_title(diagnosis), rows)


def _together(findings: list[Finding]) -> list[tuple[str, Finding]]:
    """The findings. Equal ones are merged under the names of all their checks."""
    same: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        same.setdefault((finding.severity, finding.got, finding.need, finding.fix), []).append(finding)
    return [(", ".join(dict.fromkeys(one.check for one in several)), several[0]) for several in same.values()]


def _title(diagnosis: Diagnosis) -> str:
    counts = {"error": len(diagnosis.errors)} | {
        kind: _count(diagnosis, kind) for kind in ("warning", "unknown")
    }
    named = [f"{number} {kind}{'s' * (number != 1 and kind != 'unknown')}" for kind, number in counts.items()]
    allowed = _count(diagnosis, "error") - len(diagnosis.errors)
    return ", ".join(
        [*named, *([f"{allowed} allowed"] if allowed else []), f"{len(diagnosis.passed)} checks well"]
    )


def _count(diagnosis: Diagnosis, severity: str) -> int:
    return sum(finding.severity == severity for finding in diagnosis.findings)
