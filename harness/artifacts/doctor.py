"""doctor.json: whether this run can be expected to go well here, and what to mend if not."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict


class Finding(Strict):
    """The finding of one check.

    `fix` is a command to type, a key to change, or a setting to look for; it is never left out.

    "error": the run would fail, or would not be what it says. "warning": it may be slow, or may fail later.
    "unknown": the check could not be carried out, and `got` says why.
    """

    severity: Literal["error", "warning", "unknown"]
    check: str
    got: str
    need: str
    fix: str


class Diagnosis(Artifact):
    """The doctor's findings.

    `passed` names the checks that looked and found nothing. `allowed` names the checks whose errors the user
    chose to ignore. `not_needed` holds the checks that had nothing to look at, each with the reason; they are
    not among the passed.
    """

    FILE: ClassVar[str] = "doctor.json"
    findings: list[Finding]
    passed: list[str]
    not_needed: dict[str, str] = {}
    allowed: list[str] = []

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop a run."""
        return [
            finding
            for finding in self.findings
            if finding.severity == "error" and finding.check not in self.allowed
        ]
