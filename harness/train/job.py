"""What a training run is made of, and who is told how it goes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from harness.artifacts import Dataset, Levers, Metrics, NormStats, Plan
from harness.recipe import Recipe
from harness.rundir import RunDir


class Watcher(Protocol):
    """Who is told how it goes."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def step(self, line: Metrics, steps: int) -> None: ...


class Job(NamedTuple):
    """Everything that a run is made of; all of it lies as files in the run directory."""

    run: RunDir
    recipe: Recipe
    plan: Plan
    dataset: Dataset
    stats: NormStats

    @property
    def levers(self) -> Levers:
        assert self.plan.chosen is not None
        return self.plan.chosen.levers
