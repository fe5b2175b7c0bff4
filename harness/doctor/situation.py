"""The input of the checks: the files of a run, the machine, and the environment.

A part that is not known yet is None.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from harness.artifacts import Candidate, Dataset, HostReport, InterruptedSave, Machine, NormStats, Plan
from harness.artifacts.doctor import Finding
from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.recipe.parameters import counts
from harness.recipe.schema import Recipe

# A model with more parameters than this is trained on a GPU, as in `plan.place`. A smaller model may be
# trained on the CPU.
CPU_PARAMETERS = 100_000_000


class Situation(NamedTuple):
    """The files, machine and settings that the checks examine.

    - `online`: servers may be contacted.
    - `writes`: the directories that a run writes to.
    - `limits`: the limits of `ulimit`, by letter.
    - `backend`: the project whose trainer is used. `python`: its interpreter; openpi brings its own.
    - `device`: the requested device. `refusal`: the reason why there is no plan.
    - `why_not_weights`: gives the reason why local weights cannot be the recipe's start. `other_actions`: how
      the actions that they were trained on differ from the recipe's.
    - `hosts`: the reports of all processes of the run, if it has several. `coordinator` is the host of the
      first. `slower`: why one machine alone would be faster.
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
    device: str | None = None
    refusal: HarnessError | None = None
    why_not_weights: Callable[[Path, Recipe], HarnessError | None] | None = None
    other_actions: Callable[[Path, Recipe], str | None] | None = None
    backend: Backend = "ours"
    hosts: tuple[HostReport, ...] = ()
    coordinator: str = ""
    slower: HarnessError | None = None

    @property
    def on_gpu(self) -> bool:
        """True if the run is meant for a GPU.

        The plan decides; without a plan, the requested device. Without both, it is true if the model is large
        or if a GPU is visible.
        """
        if self.plan is not None and self.plan.chosen is not None:
            return self.plan.chosen.levers.platform == "cuda"
        if self.device is not None:
            return self.device != "cpu"
        total, _ = counts(self.recipe.model, self.recipe.train.trained)
        return total > CPU_PARAMETERS or any(gpu.visible for gpu in self.machine.gpus)


class NotNeeded(Exception):
    """Raised by a check that has nothing to examine. Its text gives the reason.

    Such a check counts neither as passed nor as unknown.
    """


def error(check: str, got: object, need: str, fix: str) -> Finding:
    return Finding(severity="error", check=check, got=str(got), need=need, fix=fix)


def warning(check: str, got: object, need: str, fix: str) -> Finding:
    return Finding(severity="warning", check=check, got=str(got), need=need, fix=fix)


def without_plan(check: str, situation: Situation) -> Finding:
    """The finding of a check that needs a plan when there is none."""
    if situation.refusal is not None or situation.plan is None:
        return unknown(
            check, "there is no plan to look at", "a plan", "mend what the check of the plan names"
        )
    return unknown(
        check, "no plan fits", "a plan", "mend what the check of device memory or host memory names"
    )


def short_of_host(plan: Plan) -> Candidate | None:
    """Of the plans that the device has room for, all refused, the one that needs least of the host's memory.

    None if the device has room for none, or if its memory is the host's.
    """
    room = [
        one
        for one in plan.candidates
        if one.levers.platform == "cuda"
        and one.device_bytes is not None
        and (plan.usable_bytes is None or one.device_bytes <= plan.usable_bytes)
    ]
    if plan.shared_memory or plan.host_usable_bytes is None:
        return None
    return min(room, key=lambda one: one.host_bytes or 0, default=None)


def unknown(check: str, got: object, need: str, fix: str) -> Finding:
    return Finding(severity="unknown", check=check, got=str(got), need=need, fix=fix)
