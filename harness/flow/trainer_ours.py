"""The harness's own trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.run.directory import sha256_json

if TYPE_CHECKING:
    from harness.artifacts import Dataset, Machine, Plan
    from harness.artifacts.plan import Backend
    from harness.flow.trainer import Question
    from harness.recipe.schema import Recipe
    from harness.run.directory import RunDir


@dataclass(frozen=True)
class Ours:
    """The harness's own trainer. `keeps`: it saves checkpoints. `profile`: it traces so many steps."""

    keeps: bool = True
    profile: int = 0

    @property
    def name(self) -> Backend:
        return "ours"

    @property
    def predict_options(self) -> list[str]:
        return []

    def told(self, sets: list[str], *, any_commit: bool) -> tuple[Ours, list[str]]:  # noqa: ARG002
        return self, sets

    def profiled(self, steps: int) -> Ours:
        return replace(self, profile=steps)

    def with_shards(self, fsdp: int) -> Ours:  # noqa: ARG002
        return self

    def check(self, recipe: Recipe) -> None: ...

    def python(self) -> str:
        return sys.executable

    def plan(
        self,
        recipe: Recipe,
        machine: Machine,
        dataset: Dataset | None,
        say: Callable[[str], None],
        asked: dict[str, Any],
    ) -> Plan:
        from harness.plan.asked import Ask, Tools
        from harness.plan.atlas import shipped
        from harness.plan.calibrated import applied
        from harness.plan.choose import choose

        inputs = sha256_json([recipe, machine, None if dataset is None else dataset.sha256, asked])
        made = choose(recipe, machine, dataset, Ask(**asked), inputs=inputs, tools=Tools(shipped(), say=say))
        return applied(made, recipe, machine)

    def answer(self, question: Question) -> Plan:
        from harness.artifacts import Dataset
        from harness.flow.chain import chain_for
        from harness.flow.wait import nowhere, wait_for_cards
        from harness.show.progress import spinner

        run, recipe, sets, asked, wait = question
        chain = chain_for(run, recipe, sets, self.name)
        dataset = None if chain.run is None else chain.run.read(Dataset)
        with spinner("planning") as say:
            if wait:
                waited: Plan = wait_for_cards(chain, dataset, asked, say)
                return waited
            # This machine says nothing about a card that it does not have.
            machine = chain.machine() if asked["gpu"] is None else nowhere()
            return chain.plan(machine, dataset, **asked, say=say)

    def again(self, start: int) -> Ours:  # noqa: ARG002
        return replace(self, keeps=False)

    def command(self, run: RunDir) -> list[str]:
        more = [] if self.keeps else ["--without-checkpoints"]
        more += [f"--profile={self.profile}"] if self.profile else []
        return [sys.executable, "-m", "harness.train.worker", str(run.path), *more]

    def crashed(self, phase: str, name: str, got: str) -> None: ...


OURS = Ours()
