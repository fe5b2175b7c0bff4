"""The chain from probe to report: each part reads files of the run and writes one more, or finds its own
still current.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from harness.artifacts import Artifact, Dataset, Machine, Manifest, NormStats, Plan
from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.recipe.load import to_yaml
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, cache_root, runs_root, sha256_json, write_atomic

A = TypeVar("A", bound=Artifact)


class Chain:
    """The parts that come before training, for one run (or for none, when only the answer is wanted)."""

    def __init__(
        self,
        run: RunDir | None,
        recipe: Recipe,
        *,
        trains: bool = False,
        backend: Backend = "ours",
        fsdp: int | None = None,
    ) -> None:
        """`fsdp` is into how many shards openpi's trainer lays the state; our own plan finds it."""
        self.run, self.recipe, self.backend, self._fsdp, self._trains = run, recipe, backend, fsdp, trains
        if run is not None and (trains or not run.started):
            write_atomic(run.path / RECIPE, to_yaml(recipe))

    def machine(self) -> Machine:
        """The machine as it is now; free memory changes, so this is always read anew."""
        from harness.probe.machine import probe

        return self._keep(probe([self.run.path if self.run else runs_root(), cache_root()]))

    def dataset(self) -> Dataset:
        """The dataset, read again only when the recipe's data or a file's size or time has changed."""
        from harness.data.dataset import describe, measure_prompts
        from harness.data.fetch import resolve
        from harness.data.paths import check_is_dataset

        resolved = resolve(self.recipe.data)
        check_is_dataset(resolved.path)
        inputs = sha256_json(
            [
                self.recipe.data,
                self.recipe.model,
                str(resolved.path),
                resolved.revision,
                _signature(resolved.path),
            ]
        )
        current = self.run.current(Dataset, inputs) if self.run else None
        if current is not None:
            self._check_unchanged("dataset", current.sha256)
            # The tokenizer may have come since.
            return (
                current
                if current.longest_prompt_tokens is not None
                else self._keep(measure_prompts(self.recipe, current, needed=self._trains))
            )
        found = describe(self.recipe, prompts_needed=self._trains).model_copy(update={"inputs": inputs})
        self._check_unchanged("dataset", found.sha256)
        return self._keep(found)

    def stats(self, dataset: Dataset) -> NormStats:
        """Normalization statistics of this dataset at this horizon."""
        from harness.data.stats import compute

        data = self.recipe.data
        inputs = sha256_json(
            [
                dataset.sha256,
                data.state,
                data.actions,
                data.normalization,
                data.degenerate_dimensions,
                self.recipe.model.action_horizon,
            ]
        )
        current = self.run.current(NormStats, inputs) if self.run else None
        if current is not None:
            self._check_unchanged("norm_stats", sha256_json(current.norm_stats))
            return current
        found = compute(self.recipe, dataset).model_copy(update={"inputs": inputs})
        self._check_unchanged("norm_stats", sha256_json(found.norm_stats))
        return self._keep(found)

    def plan(
        self,
        machine: Machine,
        dataset: Dataset | None,
        *,
        say: Callable[[str], None] = lambda _: None,
        **asked: Any,
    ) -> Plan:
        """The plan for the free memory of this moment; the compiler's answer behind it is kept in the cache.

        `asked`: see plan.choose.Ask.
        """
        if self.backend == "openpi":
            return self._keep(self._plan_openpi(machine, asked.get("device")))
        from harness.plan.atlas import shipped
        from harness.plan.choose import Ask, Tools, choose

        inputs = sha256_json([self.recipe, machine, None if dataset is None else dataset.sha256, asked])
        return self._keep(
            choose(
                self.recipe, machine, dataset, Ask(**asked), inputs=inputs, tools=Tools(shipped(), say=say)
            )
        )

    def _plan_openpi(self, machine: Machine, device: str | None) -> Plan:
        from harness.openpi.run import plan_run

        inputs = sha256_json([self.recipe, machine, "openpi", device, self._fsdp])
        return plan_run(self.recipe, machine, device, self._fsdp, inputs=inputs)

    def carry_out(self, plan: Plan) -> list[str]:
        """The deviations of the chosen plan; from here on the recipe is the one that it carries out, in the
        run's directory too.
        """
        from harness.plan.candidates import changed

        assert plan.chosen is not None
        if plan.chosen.changes:
            self.recipe = changed(self.recipe, plan.chosen.changes)
            if self.run is not None:
                write_atomic(self.run.path / RECIPE, to_yaml(self.recipe))
        return plan.chosen.deviations

    def _check_unchanged(self, what: str, sha256: str) -> None:
        """Refuses other data or statistics than those that the run was started with.

        Raises: HarnessError "dataset-differs" or "norm_stats-differs".
        """
        manifest = self.run.read(Manifest) if self.run else None
        if self.run is None or manifest is None:
            return
        was = str(getattr(manifest, f"{what}_sha256"))
        if was != sha256:
            raise HarnessError(
                f"{what}-differs",
                f"{self.run.path} was started with another {what}: {self.recipe.data.dataset} has changed"
                " since; nothing was overwritten",
                got=f"sha256 {sha256[:16]}",
                need=f"sha256 {was[:16]} of the run's manifest",
                fix="restore the data, or start a run of its own: --name NEW without --resume",
            )

    def _keep(self, artifact: A) -> A:
        if self.run is not None:
            self.run.write(artifact)
        return artifact


def _signature(root: Path) -> list[Any]:
    """Path, size and time of every file: cheap to read, and other than before when a byte has been
    written.
    """
    from harness.data.paths import walk_dataset

    files = sorted(walk_dataset(root))
    return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
