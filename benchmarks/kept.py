"""Bitwise comparison of a killed run's remains with an uninterrupted run of the same recipe."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.recipe.load import load_recipe

# Of a line of metrics, what tells the time.
TIMES = ("step_s", "data_s", "time")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines without their times; a last line that was cut by a kill is no line."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            body = json.loads(line)
        except ValueError:
            continue
        found.append({name: value for name, value in body.items() if name not in TIMES})
    return found


class Kept:
    """The uninterrupted run; threads may compare with it side by side. It has kept every step."""

    def __init__(self, whole: Path, steps: int) -> None:
        import jax

        from harness.artifacts import Plan
        from harness.run.directory import RunDir
        from harness.train.setup import setup_of
        from harness.train.sharding import local_layout

        jax.config.update("jax_platforms", "cpu")
        plan = RunDir(whole).read(Plan)
        assert plan is not None
        assert plan.chosen is not None
        self._setup = setup_of(load_recipe(str(whole / "recipe.yaml")), local_layout(plan.chosen.levers))
        self._lines, self._lock, self._sound = metrics(whole), threading.Lock(), set[tuple[Path, int, int]]()
        self._digests = {step: digests(whole, step) for step in self.whole(whole)}
        corrupt, _ = self.compare(whole)
        if (
            corrupt
            or [line["step"] for line in self._lines] != list(range(steps))
            or sorted(self._digests) != list(range(1, steps + 1))
        ):
            raise SystemExit(
                f"the uninterrupted run is not whole: {corrupt}, {len(self._lines)} lines, checkpoints"
                f" {sorted(self._digests)}"
            )

    def whole(self, run: Path) -> list[int]:
        """The steps that a resume would take for whole."""
        from harness.run.steps import whole_steps

        return whole_steps(run / "checkpoints")

    def compare(self, run: Path, *, again: bool = False) -> tuple[list[str], list[str]]:
        """(checkpoints that do not load, what differs from the uninterrupted run).

        What was found sound is not read `again` unless told.
        """
        corrupt, differs = [], []
        for step in self.whole(run):
            key = (run, step, (run / "checkpoints" / str(step)).stat().st_ino)
            if key in self._sound and not again:
                continue
            try:
                self._restore(run, step)
            except HarnessError as error:
                corrupt.append(f"step {step}: {error}")
                continue
            if hasattr(self, "_digests") and digests(run, step) != self._digests[step]:
                differs.append(f"arrays of step {step}")
            self._sound.add(key)
        lines = metrics(run)
        if lines != self._lines[: len(lines)]:
            at = next(
                (i for i, (a, b) in enumerate(zip(lines, self._lines, strict=False)) if a != b),
                len(self._lines),
            )
            differs.append(f"line {at} of metrics: {lines[at]}")
        return corrupt, differs

    def _restore(self, run: Path, step: int) -> None:
        """Reads a checkpoint as a resume does; every array is compared with its sha256."""
        from harness.checkpoint.store import Store
        from harness.train.snapshot import restore

        with self._lock:
            store = Store(run / "checkpoints", keep_every_steps=1)
            try:
                restore(store, self._setup, step)
            finally:
                store.close()


def digests(run: Path, step: int) -> dict[str, str]:
    """Path → sha256 of every array of a checkpoint, as its save has taken it."""
    found: dict[str, str] = json.loads(
        (run / "checkpoints" / str(step) / "harness" / "digests.json").read_text()
    )["leaves"]
    return found
