"""fetched.json: what a run needs from elsewhere, and where it lies now."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict


class Part(Strict):
    """`path` is a file or directory on this machine; `bytes` what it takes there."""

    what: Literal["dataset", "tokenizer", "weights"]
    source: str
    path: str
    bytes: int


class Fetched(Artifact):
    """The parts of a recipe that are files; one that it does not have (random weights) is left out."""

    FILE: ClassVar[str] = "fetched.json"
    recipe: str
    parts: list[Part]
