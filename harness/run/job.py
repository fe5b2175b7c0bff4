"""What a training run is made of."""

from __future__ import annotations

from typing import NamedTuple

from harness.artifacts import Dataset, Levers, NormStats, Plan
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir


class Job(NamedTuple):
    """Everything that a run is made of; all of it lies as files in the run directory. A replay `keeps` no checkpoint."""

    run: RunDir
    recipe: Recipe
    plan: Plan
    dataset: Dataset
    stats: NormStats
    keeps: bool = True

    @property
    def levers(self) -> Levers:
        assert self.plan.chosen is not None
        return self.plan.chosen.levers
