"""The base class of every file of a run."""

from __future__ import annotations

from typing import ClassVar

from harness.strict import Strict


class Artifact(Strict):
    """A file of a run.

    `inputs` is a hash of everything the file was computed from. If it has not changed, the verb is skipped.
    `RECORDED`: it tells what was, so no verb writes the same file again.
    """

    FILE: ClassVar[str]
    RECORDED: ClassVar[bool] = False
    schema_version: int = 1
    inputs: str = ""
