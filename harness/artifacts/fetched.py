"""fetched.json: the downloaded parts of a run, and where they lie now."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict


class Part(Strict):
    """One downloaded part. `path` is a file or directory on this machine; `bytes` is its size there."""

    what: Literal["dataset", "tokenizer", "weights", "statistics"]
    source: str
    path: str
    bytes: int


class Fetched(Artifact):
    """The parts of a recipe that are files.

    A part that the recipe does not have (random weights) is left out.
    """

    FILE: ClassVar[str] = "fetched.json"
    recipe: str
    parts: list[Part]
