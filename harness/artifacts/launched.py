"""launch.json: what was written for an engine, and what was started."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact


class Launched(Artifact):
    """The files for an engine. `start` are commands for a person, one of which is enough.

    `job` is what the engine calls the run it was handed, `state` how that has ended; None if nothing was
    submitted, or is not known.
    """

    FILE: ClassVar[str] = "launch.json"
    engine: Literal["slurm", "kubernetes", "compose", "ray"]
    hosts: int
    run: str
    recipe: str
    gpus: int
    plan: str | None = None
    files: list[str]
    start: list[str]
    job: str | None = None
    state: str | None = None
