"""The parts of a training run, read from its directory."""

from __future__ import annotations

from typing import NamedTuple

from harness.artifacts import Dataset, Levers, NormStats, Plan
from harness.errors import HarnessError
from harness.received.files import there
from harness.received.text import word
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir


class Job(NamedTuple):
    """Everything that a training needs. All of it lies as files in the run directory.

    `keeps` is False for a replay, which keeps no checkpoint. `profile` counts the steps to trace.
    """

    run: RunDir
    recipe: Recipe
    plan: Plan
    dataset: Dataset
    stats: NormStats
    keeps: bool = True
    profile: int = 0

    @property
    def levers(self) -> Levers:
        assert self.plan.chosen is not None
        return self.plan.chosen.levers


def job_of(run: RunDir) -> Job:
    """The job that the files of `run` describe.

    Raises: HarnessError "run-incomplete" if a file is missing; UnsafeFile if a directory of the run lies
    elsewhere.
    """
    run.check_own()
    plan, dataset, stats = run.read(Plan), run.read(Dataset), run.read(NormStats)
    if plan is None or dataset is None or stats is None or not there(run.path / RECIPE):
        raise HarnessError(
            "run-incomplete",
            f"{run.path} is not ready to be trained",
            need=f"{RECIPE}, {Plan.FILE}, {Dataset.FILE} and {NormStats.FILE}",
            fix=(
                f"harness train --resume --run {word(run.path)} writes them"
                if run.started
                else f"harness train --run {word(run.path)} writes them"
            ),
        )
    return Job(run, load_recipe(str(run.path / RECIPE), root=run.path), plan, dataset, stats)
