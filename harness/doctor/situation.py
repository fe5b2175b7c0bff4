"""What the checks look at: the files of a run, the machine, and the environment. A part that is not known yet is None."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from harness.artifacts import Dataset, InterruptedSave, Machine, NormStats, Plan
from harness.artifacts.doctor import Finding
from harness.errors import HarnessError
from harness.recipe import Recipe


class Situation(NamedTuple):
    """`online`: servers may be contacted. `writes` are the directories that a run writes to; `limits` those of `ulimit`, by letter.

    `python` is the interpreter of the trainer, which openpi's own brings. `why_not_weights` says what keeps local weights from being the
    recipe's start.
    """

    recipe: Recipe
    machine: Machine
    environ: Mapping[str, str]
    run: Path | None = None
    writes: tuple[Path, ...] = ()
    plan: Plan | None = None
    dataset: Dataset | None = None
    stats: NormStats | None = None
    leftovers: tuple[InterruptedSave, ...] = ()
    limits: Mapping[str, int] = MappingProxyType({})
    online: bool = False
    python: str = sys.executable
    why_not_weights: Callable[[Path, Recipe], HarnessError | None] | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the run is meant for a GPU: by its plan, or because there is one."""
        if self.plan is not None and self.plan.chosen is not None:
            return self.plan.chosen.levers.platform == "cuda"
        return any(gpu.visible for gpu in self.machine.gpus)


def error(check: str, got: object, need: str, fix: str) -> Finding:
    return Finding(severity="error", check=check, got=str(got), need=need, fix=fix)


def warning(check: str, got: object, need: str, fix: str) -> Finding:
    return Finding(severity="warning", check=check, got=str(got), need=need, fix=fix)


def unknown(check: str, got: object, need: str, fix: str) -> Finding:
    return Finding(severity="unknown", check=check, got=str(got), need=need, fix=fix)
