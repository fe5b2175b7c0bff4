"""The interface of a trainer: everything that the flow asks of it.

`find.trainer_of` chooses the trainer once. From then on this object is passed along. A third trainer needs
one more file beside trainer_ours.py and trainer_openpi.py, a name in artifacts/plan.py, and in run/ the names
of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.run.trainer import Supervised

if TYPE_CHECKING:
    from harness.artifacts import Dataset, Machine, Plan
    from harness.artifacts.plan import Backend
    from harness.recipe.schema import Recipe


class Question(NamedTuple):
    """The arguments of `harness plan`. `asked`: see plan.choose.Ask. `wait`: wait for a busy card."""

    run: Path | None
    recipe: str | None
    sets: list[str]
    asked: dict[str, Any]
    wait: bool


class Trainer(Supervised, Protocol):
    @property
    def name(self) -> Backend: ...

    @property
    def predict_options(self) -> list[str]:
        """The options that `harness predict` needs beside this trainer."""

    def told(self, sets: list[str], *, any_commit: bool) -> tuple[Trainer, list[str]]:
        """(the trainer that the command line asks for, those of its --set entries that change the recipe).

        Raises: HarnessError "override-invalid".
        """

    def profiled(self, steps: int) -> Trainer:
        """The trainer that traces so many steps; the same one for 0.

        Raises: HarnessError "upstream-cannot".
        """

    def with_shards(self, fsdp: int) -> Trainer:
        """The trainer that splits the state into `fsdp` shards.

        It is the same trainer if its plan finds the number itself.
        """

    def check(self, recipe: Recipe) -> None:
        """Checks that the trainer is installed and can do what the recipe says.

        Raises: HarnessError.
        """

    def python(self) -> str:
        """The path of the Python interpreter that the trainer runs in."""

    def plan(
        self,
        recipe: Recipe,
        machine: Machine,
        dataset: Dataset | None,
        say: Callable[[str], None],
        asked: dict[str, Any],
    ) -> Plan:
        """The plan by which the trainer carries the recipe out here. `asked`: see plan.choose.Ask."""

    def answer(self, question: Question) -> Plan:
        """The plan that `harness plan` asks for. It is written into the run that the question names."""

    def again(self, start: int) -> Trainer:
        """The trainer that recomputes steps from `start` on, for a comparison.

        Raises: HarnessError "upstream-cannot".
        """
