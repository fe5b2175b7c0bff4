"""The checkpoints of openpi's trainer in a run: saves under way, and the records that the harness adds.

Beside a whole step the harness writes `harness/record.json`, with the recipe, and `harness/digests.json`: a
sha256 of every array as it lies on the disk after the save.

Source: openpi scripts/train.py `main`, src/openpi/training/checkpoints.py, commit 15a9616.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, read_received, walk
from harness.recipe.schema import Recipe
from harness.run.steps import (
    ASSETS,
    DIGESTS,
    HARNESS,
    QUIET_S,
    RECORD,
    TREES,
    interrupted_saves,
    steps_taken,
    whole_steps,
)


def is_saving(checkpoints: Path) -> bool:
    """True if an unfinished save was written to recently.

    Such a save is under way, and not left by another process.
    """
    newest = 0.0
    for save in interrupted_saves(checkpoints):
        for folder, _, files in os.walk(save):
            for path in (Path(folder), *(Path(folder, file) for file in files)):
                # A save that becomes whole is renamed while it is read.
                with contextlib.suppress(OSError):
                    newest = max(newest, path.stat().st_mtime)
    return time.time() - newest < QUIET_S


class Records:
    """A writer of records and digests. It has its own thread, since reading a full state takes a minute."""

    def __init__(self, checkpoints: Path, recipe: Recipe, commit: str) -> None:
        self._checkpoints = checkpoints
        self._record = {
            "trainer": "openpi",
            "commit": commit,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_sha256": recipe.sha256(),
        }
        self._known: set[int] = set()
        self._waiting: queue.Queue[int | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def look(self) -> list[int]:
        """The steps that have become whole since the last call."""
        new = [step for step in whole_steps(self._checkpoints, "openpi") if step not in self._known]
        for step in new:
            self._known.add(step)
            if not (self._checkpoints / str(step) / HARNESS).exists():
                self._waiting.put(step)
        return new

    def close(self) -> None:
        """Waits until all records are written."""
        self.look()
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (step := self._waiting.get()) is not None:
            # Upstream deletes a step when the next is whole, even while it is read.
            with contextlib.suppress(OSError, ValueError, HarnessError):
                self._write(
                    self._checkpoints / str(step), self._record | {"step": steps_taken(step, "openpi")}
                )

    @staticmethod
    def _write(step: Path, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        digests = {
            "leaves": leaf_digests(step),
            "files": text_digests(step) | {RECORD: hashlib.sha256(text.encode()).hexdigest()},
        }
        # Gets its name only when whole: a step with half a record would not be whole.
        scratch = step / f".{HARNESS}.{os.getpid()}"
        try:
            scratch.mkdir()
            (scratch / Path(RECORD).name).write_text(text)
            (scratch / Path(DIGESTS).name).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
            scratch.rename(step / HARNESS)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def leaf_digests(step: Path) -> dict[str, str]:
    """Item/path → sha256 of each array as stored, its elements in C order.

    Raises: OSError, ValueError if one cannot be read.
    """
    from harness.checkpoint.deep import stream
    from harness.checkpoint.item import read_item

    found = {}
    for name in TREES:
        for array, health in stream(read_item(step / name)):
            if health is None:
                raise ValueError(f"{step / name}: {array.path} cannot be read")
            found[f"{name}/{array.path}"] = health.sha256
    return found


def text_digests(step: Path) -> dict[str, str]:
    """Path below the step → sha256, for the statistics inside the step."""
    assets = step / ASSETS
    files = sorted(walk(assets)) if assets.is_dir() else []
    return {
        str(path.relative_to(step)): hashlib.sha256(read_received(path, assets, ARTIFACT_BYTES)).hexdigest()
        for path in files
    }
