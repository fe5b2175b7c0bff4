"""Checkpoint steps for tests that read only names: the files of a finished save, all empty."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.artifacts.plan import Backend
from harness.run.steps import missing

# What a finished save of ours has, in the words of the disk and not of the module.
OURS = [
    "_CHECKPOINT_METADATA",
    "harness/record.json",
    "params/_METADATA",
    "params/manifest.ocdbt",
    "train_state/_METADATA",
    "train_state/manifest.ocdbt",
]


def put_step(
    checkpoints: Path, name: int | str, *, backend: Backend = "ours", without: Iterable[str] = ()
) -> Path:
    """The directory `name` of a finished save, without the files `without`."""
    step = checkpoints / str(name)
    step.mkdir(parents=True, exist_ok=True)
    for file in missing(step, backend):
        if file not in without:
            (step / file).parent.mkdir(exist_ok=True)
            (step / file).write_text("{}")
    return step
