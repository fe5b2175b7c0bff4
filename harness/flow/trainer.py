"""Whose trainer carries a run out: all that the flow asks of it.

`find.trainer_of` says once whose it is; from there on this object goes along. A third trainer is one more
file beside trainer_ours.py and trainer_openpi.py, a name in artifacts/plan.py, and in run/ how it names its
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from harness.artifacts import Dataset, Machine, Plan
    from harness.artifacts.plan import Backend
    from harness.errors import HarnessError
    from harness.recipe.schema import Recipe
    from harness.run.directory import RunDir


class Question(NamedTuple):
    """What `harness plan` is asked; `asked` as in plan.choose.Ask, `wait` until a busy card is free."""

    run: Path | None
    recipe: str | None
    sets: list[str]
    asked: dict[str, Any]
    wait: bool


class Trainer(Protocol):
    @property
    def name(self) -> Backend: ...

    @property
    def predict_options(self) -> list[str]:
        """What `harness predict` must be told beside this trainer."""

    def told(self, sets: list[str], *, any_commit: bool) -> tuple[Trainer, list[str]]:
        """(the trainer as the command line wants it, what of its --set changes the recipe).

        Raises: HarnessError "override-invalid".
        """

    def with_shards(self, fsdp: int) -> Trainer:
        """The trainer that lays the state into so many shards, where its plan does not find their number."""

    def check(self, recipe: Recipe) -> None:
        """Checks that the trainer is here and can do what the recipe says.

        Raises: HarnessError.
        """

    def python(self) -> str:
        """The interpreter that it runs in."""

    def plan(
        self,
        recipe: Recipe,
        machine: Machine,
        dataset: Dataset | None,
        say: Callable[[str], None],
        asked: dict[str, Any],
    ) -> Plan:
        """How it carries the recipe out on this machine; `asked` as in plan.choose.Ask."""

    def answer(self, question: Question) -> Plan:
        """The plan that `harness plan` is asked for, written into the run that it names."""

    def again(self, start: int) -> Trainer:
        """The trainer that computes steps once more from `start` on, to be compared.

        Raises: HarnessError "upstream-cannot".
        """

    def command(self, run: RunDir) -> list[str]:
        """The command that trains what the files of `run` say."""

    def crashed(self, phase: str, name: str, got: str) -> HarnessError | None:
        """What a crash in that phase by the signal `name` means, where this trainer knows more of it."""
