"""The chain from probe to report.

Each part reads files of the run and writes one more. A part whose own file is still current returns that
file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from harness.artifacts import Artifact, Dataset, Machine, Manifest, NormStats, Plan
from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.flow.find import default_recipe, recipe_of, trainer_of
from harness.flow.trainer import Trainer
from harness.flow.trainer_ours import OURS
from harness.recipe.load import load_recipe, to_yaml
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, cache_root, runs_root, sha256_json, write_atomic

A = TypeVar("A", bound=Artifact)


class Chain:
    """The parts that come before training, for one run. Without a run nothing is written."""

    def __init__(
        self, run: RunDir | None, recipe: Recipe, *, trains: bool = False, trainer: Trainer = OURS
    ) -> None:
        self.run, self.recipe, self.trainer, self._trains = run, recipe, trainer, trains
        if run is not None and (trains or not run.started):
            write_atomic(run.path / RECIPE, to_yaml(recipe))

    def machine(self) -> Machine:
        """The machine as it is now. It is always probed anew, because free memory changes."""
        from harness.probe.machine import probe

        return self._keep(probe([self.run.path if self.run else runs_root(), cache_root()]))

    def dataset(self) -> Dataset:
        """The dataset. It is read again only when the recipe's data or a file's size or time has changed."""
        from harness.data.dataset import describe, measure_prompts
        from harness.data.fetch import resolve
        from harness.data.paths import check_is_dataset

        sources = [resolve(part) for part in self.recipe.data.parts()]
        for one in sources:
            check_is_dataset(one.path)
        seen = [[str(one.path), one.revision, signature_of(one.path)] for one in sources]
        inputs = sha256_json(
            [self.recipe.data, self.recipe.model, *itertools.chain(*seen), *self._held_out()]
        )
        current = self.run.current(Dataset, inputs) if self.run else None
        if current is not None:
            self._check_unchanged("dataset", current.sha256)
            # The tokenizer may have been fetched since then.
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
        from harness.data.given import statistics

        data = self.recipe.data
        inputs = sha256_json(
            [
                dataset.sha256,
                data.state,
                data.actions,
                data.normalization,
                data.degenerate_dimensions,
                self.recipe.model.action_horizon,
                # Earlier versions had none of these: their statistics stay current.
                *([data.relative, data.adapt] if data.relative or data.adapt else []),
                *([] if data.episodes is None else [data.episodes]),
                *([] if data.datasets is None else [data.datasets]),
                *([] if data.norm_stats is None else [self._given_sha256()]),
                *self._held_out(),
            ]
        )
        current = self.run.current(NormStats, inputs) if self.run else None
        if current is not None:
            self._check_unchanged("norm_stats", sha256_json(current.norm_stats))
            return current
        found = statistics(self.recipe, dataset)
        found = found.model_copy(update={"inputs": inputs})
        self._check_unchanged("norm_stats", sha256_json(found.norm_stats))
        return self._keep(found)

    def _given_sha256(self) -> str:
        """The hash of the given file of statistics.

        A started run has the statistics itself: it goes on without the file.
        """
        from harness.data.given import file_sha256, given_file

        try:
            return file_sha256(given_file(self.recipe))
        except HarnessError:
            own = self.run.read(NormStats) if self.run is not None and self.run.started else None
            if own is None or own.given is None:
                raise
            return own.given.sha256

    def _held_out(self) -> list[Any]:
        """What a hash of inputs has of the holdout. Nothing without one, so that older files stay current."""
        holdout = self.recipe.train.holdout
        return [] if holdout is None else [holdout.episodes, holdout.seed]

    def plan(
        self,
        machine: Machine,
        dataset: Dataset | None,
        *,
        say: Callable[[str], None] = lambda _: None,
        **asked: Any,
    ) -> Plan:
        """The plan for the memory that is free now. The compiler's answer behind it is kept in the cache.

        `asked`: see plan.choose.Ask.
        """
        return self._keep(self.trainer.plan(self.recipe, machine, dataset, say, asked))

    def carry_out(self, plan: Plan) -> list[str]:
        """The deviations of the chosen plan.

        From here on `self.recipe`, and the recipe in the run's directory, is the one that the plan carries
        out.
        """
        from harness.plan.candidates import changed

        assert plan.chosen is not None
        if plan.chosen.changes:
            self.recipe = changed(self.recipe, plan.chosen.changes)
            if self.run is not None:
                write_atomic(self.run.path / RECIPE, to_yaml(self.recipe))
        return plan.chosen.deviations

    def _check_unchanged(self, what: str, sha256: str) -> None:
        """Refuses data or statistics that differ from those that the run was started with.

        Raises: HarnessError "dataset-differs" or "norm_stats-differs".
        """
        manifest = self.run.read(Manifest) if self.run else None
        if self.run is None or manifest is None:
            return
        was = str(getattr(manifest, f"{what}_sha256"))
        if was != sha256:
            given = self.recipe.data.norm_stats if what == "norm_stats" else None
            raise HarnessError(
                f"{what}-differs",
                f"{self.run.path} was started with another {what}: {given or self.recipe.data.dataset} has"
                " changed since; nothing was overwritten",
                got=f"sha256 {sha256[:16]}",
                need=f"sha256 {was[:16]} of the run's manifest",
                fix="restore the data, or start a run of its own: --name NEW without --resume",
            )

    def _keep(self, artifact: A) -> A:
        if self.run is not None:
            self.run.write(artifact)
        return artifact


def chain_for(
    run: Path | None, recipe: str | None, overrides: list[str], asked: Backend | None = None
) -> Chain:
    """The chain for a single verb.

    Its recipe is the named one, else the run's own, with the overrides. `asked` names the trainer, as in
    `trainer_of`.
    """
    if run is None:
        return Chain(
            None, load_recipe(recipe or default_recipe(), overrides), trainer=trainer_of(None, asked)
        )
    own = recipe_of(RunDir(run), recipe, overrides, own_first=True)
    return Chain(RunDir(run), own, trainer=trainer_of(RunDir(run), asked))


def signature_of(root: Path) -> list[Any]:
    """Path, size and time of every file. It is cheap to read and changes when a file is written."""
    from harness.data.paths import walk_dataset

    files = sorted(walk_dataset(root))
    return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
