"""openpi's own trainer, started and followed by a process of the harness."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.run.directory import RECIPE, RunDir, cache_root, sha256_json

if TYPE_CHECKING:
    from harness.artifacts import Dataset, Machine, Plan
    from harness.artifacts.plan import Backend
    from harness.flow.trainer import Question
    from harness.recipe.schema import Recipe


@dataclass(frozen=True)
class Openpi:
    """openpi's trainer.

    `fsdp` is the number of shards of the state; None means one. With `any_commit` it trains at whatever
    commit is checked out.
    """

    fsdp: int | None = None
    any_commit: bool = False

    @property
    def name(self) -> Backend:
        return "openpi"

    @property
    def predict_options(self) -> list[str]:
        # Beside openpi the harness itself may have no GPU libraries.
        return ["--device", "cpu"]

    def told(self, sets: list[str], *, any_commit: bool) -> tuple[Openpi, list[str]]:
        from harness.openpi.plan import options

        fsdp, overrides = options(sets)
        return Openpi(fsdp, any_commit), overrides

    def profiled(self, steps: int) -> Openpi:
        if steps:
            raise HarnessError(
                "upstream-cannot",
                "openpi's trainer traces no steps",
                got=f"--profile {steps}",
                need="--backend ours",
                fix="leave --profile out",
            )
        return self

    def with_shards(self, fsdp: int) -> Openpi:
        return replace(self, fsdp=fsdp)

    def check(self, recipe: Recipe) -> None:
        """Checks that upstream is installed and can do what the recipe says.

        Raises: HarnessError "upstream-cannot" and those of `find_installation`.
        """
        from harness.openpi.install import find_installation
        from harness.openpi.job import check_upstream_can

        check_upstream_can(recipe)
        find_installation(any_commit=self.any_commit)

    def python(self) -> str:
        from harness.openpi.install import find_installation

        return str(find_installation(any_commit=True).python)

    def plan(
        self,
        recipe: Recipe,
        machine: Machine,
        dataset: Dataset | None,  # noqa: ARG002
        say: Callable[[str], None],  # noqa: ARG002
        asked: dict[str, Any],
    ) -> Plan:
        from harness.openpi.run import plan_run

        device = asked.get("device")
        inputs = sha256_json([recipe, machine, self.name, device, self.fsdp])
        return plan_run(recipe, machine, device, self.fsdp, inputs=inputs)

    def answer(self, question: Question) -> Plan:
        """The plan that says whether upstream's own step fits, as configured.

        Without --recipe it is the published recipe's.

        Raises: HarnessError of `plan_upstream`.
        """
        from harness.flow.find import recipe_of
        from harness.openpi import plan as upstream_plan
        from harness.probe.machine import probe
        from harness.received.files import there
        from harness.recipe.load import load_recipe

        run, recipe, sets, asked, _ = question
        _check_asked(asked)
        fsdp, overrides = upstream_plan.options(sets)
        if run is not None and recipe is None and there(run / RECIPE):
            own = recipe_of(RunDir(run), None, overrides, own_first=True)
        else:
            own = load_recipe(recipe or upstream_plan.PUBLISHED, overrides)
        where = {name: asked[name] for name in ("gpu", "vram_bytes", "host_ram_bytes")}
        machine = None if asked["gpu"] else probe([run or cache_root(), cache_root()])
        place = upstream_plan.place_of(own, machine, **where, fsdp=fsdp)
        made = upstream_plan.plan_upstream(own, place, fsdp, inputs=sha256_json([own, asked, fsdp]))
        if run is not None:
            RunDir(run).write(made)
        return made

    def again(self, start: int) -> Openpi:
        """The trainer at any commit. openpi always saves; its commit is one of the compared fields."""
        if start:
            what = (
                "openpi's loader begins anew at every resume, so its steps can be computed again from step 0"
                " only"
            )
            raise HarnessError("upstream-cannot", what, got=f"--from {start}", fix="leave --from out")
        return replace(self, any_commit=True)

    def command(self, run: RunDir) -> list[str]:
        more = ["--any-commit"] if self.any_commit else []
        return [sys.executable, "-m", "harness.openpi.worker", str(run.path), *more]

    def crashed(self, phase: str, name: str, got: str) -> HarnessError | None:
        from harness.openpi.install import IMPORT, crashed_at_import

        return crashed_at_import(name, got) if phase == IMPORT else None


def _check_asked(asked: dict[str, Any]) -> None:
    if asked["recompile"] or asked["device"] == "cpu":
        what = (
            "upstream's step is not compiled here: its versions are others than ours"
            if asked["recompile"]
            else "openpi's trainer is planned for GPUs"
        )
        fix = "leave --compile out" if asked["recompile"] else "leave --device cpu out, or add --gpu NAME"
        raise HarnessError(
            "upstream-cannot", what, need="the table of compiled answers that is shipped", fix=fix
        )
