"""What every file of a run has in common."""

from __future__ import annotations

from typing import ClassVar

from harness.strict import Strict


class Artifact(Strict):
    """A file of a run.

    `inputs` is a hash of all it was computed from: when that has not changed, the verb is skipped.
    """

    FILE: ClassVar[str]
    schema_version: int = 1
    inputs: str = ""
