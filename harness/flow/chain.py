"""The chain from probe to report: each part reads files of the run and writes one more, or finds its own still current."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from harness.artifacts import Artifact, Dataset, Machine, Manifest, NormStats, Plan
from harness.download import consent
from harness.errors import HarnessError
from harness.received.files import there, walk
from harness.received.names import why_no_name
from harness.received.text import word
from harness.recipe.schema import Recipe, load_recipe, to_yaml
from harness.run.directory import DATASET_PAGE, RECIPE, REPORT, RunDir, cache_root, latest_run, new_run, runs_root, sha256_json, write_atomic
from harness.run.surroundings import deterministic

A = TypeVar("A", bound=Artifact)
Backend = Literal["ours", "openpi"]


def default_recipe() -> str:
    """The recipe when none is named: $HARNESS_RECIPE, which each compose service sets, else the small one."""
    return os.environ.get("HARNESS_RECIPE", "smoke")


def find_run(run: Path | None, name: str | None, recipe: str | None, *, resume: bool) -> RunDir:
    """The run directory that a training command means: the one named, the latest of the recipe (resume), or a new one.

    Raises: HarnessError "nothing-to-resume", "run-and-name", "run-name-invalid".
    """
    if run is not None and name is not None:
        raise HarnessError("run-and-name", "--run and --name both say where the run is", fix="give one of the two")
    if name is not None and (reason := why_no_name(name)) is not None:
        raise HarnessError("run-name-invalid", f"--name cannot be a run's: {reason}", got=name, need="a name, or --run DIR", fix="--name smoke-2")
    if run is not None or name is not None:
        found = RunDir(run if run is not None else runs_root() / str(name))
        if resume and not found.path.is_dir():
            raise HarnessError("nothing-to-resume", f"there is no run {found.path}", need="a run directory", fix="leave --resume out, or correct the path")
        return found
    stem = Path(recipe or default_recipe()).stem
    if not resume:
        return new_run(stem)
    latest = latest_run(stem)
    if latest is None:
        raise HarnessError("nothing-to-resume", f"no run of {stem} in {runs_root()}", need="a run to go on with", fix="leave --resume out, or give --run DIR")
    return latest


def recipe_of(run: RunDir, named: str | None, overrides: list[str], *, own_first: bool) -> Recipe:
    """The recipe named, or with `own_first` the run's own when none is named; with the overrides.

    Raises: HarnessError "run-of-another-recipe" when the run has started with another, and those of `load_recipe`.
    """
    own = run.path / RECIPE
    keeps_its_own = own_first and named is None and there(own)
    recipe = load_recipe(str(own), overrides, root=run.path) if keeps_its_own else load_recipe(named or default_recipe(), overrides)
    if keeps_its_own:
        # The package's own addresses are nobody else's, whichever run names them.
        consent.grant_shipped()
    if run.started and there(own) and load_recipe(str(own), root=run.path).sha256() != recipe.sha256():
        raise HarnessError(
            "run-of-another-recipe",
            f"{run.path} is a run of another recipe (or of the same with other --set)",
            got=recipe.name,
            need=f"the recipe in {own}",
            fix="another --run or --name for another recipe; or leave --recipe, --set and --dataset out to use this run's own",
        )
    return recipe


def refuse_started(run: RunDir) -> None:
    """Raises: HarnessError "run-exists" when the run has been trained already."""
    if run.started:
        raise HarnessError(
            "run-exists",
            f"{run.path} has been trained already; nothing was overwritten",
            need="a new run, or --resume",
            fix=f"add --resume to go on, or --name {word(run.path.absolute().name)}-2 for another run",
        )


def backend_of(run: RunDir | None, asked: str | None = None) -> Backend:
    """Whose trainer a run is carried out by: the one that it was started with, else the one asked for, else $HARNESS_BACKEND or ours.

    Raises: HarnessError "run-of-another-backend", "backend-unknown".
    """
    manifest = run.read(Manifest) if run is not None else None
    default = os.environ.get("HARNESS_BACKEND") or "ours"
    if default not in get_args(Backend):
        need = " or ".join(get_args(Backend))
        raise HarnessError("backend-unknown", f"HARNESS_BACKEND={default} names no trainer", got=default, need=need, fix="HARNESS_BACKEND=openpi, or unset it")
    if run is None or manifest is None:
        return cast(Backend, asked or default)
    own: Backend = "openpi" if manifest.upstream is not None else "ours"
    if asked not in (None, own):
        raise HarnessError(
            "run-of-another-backend",
            f"{run.path} was trained by another trainer, whose checkpoints this one does not resume from",
            got=f"--backend {asked}",
            need=f"--backend {own}",
            fix="leave --backend out to go on; or a run of its own: --name NEW, with --set weights.source=… to start from its checkpoint",
        )
    return own


class Chain:
    """The parts that come before training, for one run (or for none, when only the answer is wanted)."""

    def __init__(self, run: RunDir | None, recipe: Recipe, *, trains: bool = False, backend: Backend = "ours", fsdp: int | None = None) -> None:
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
        inputs = sha256_json([self.recipe.data, self.recipe.model, str(resolved.path), resolved.revision, _signature(resolved.path)])
        current = self.run.current(Dataset, inputs) if self.run else None
        if current is not None:
            self._check_unchanged("dataset", current.sha256)
            # The tokenizer may have come since.
            return current if current.longest_prompt_tokens is not None else self._keep(measure_prompts(self.recipe, current, needed=self._trains))
        found = describe(self.recipe, prompts_needed=self._trains).model_copy(update={"inputs": inputs})
        self._check_unchanged("dataset", found.sha256)
        return self._keep(found)

    def stats(self, dataset: Dataset) -> NormStats:
        """Normalization statistics of this dataset at this horizon."""
        from harness.data.stats import compute

        data = self.recipe.data
        inputs = sha256_json([dataset.sha256, data.state, data.actions, data.normalization, data.degenerate_dimensions, self.recipe.model.action_horizon])
        current = self.run.current(NormStats, inputs) if self.run else None
        if current is not None:
            self._check_unchanged("norm_stats", sha256_json(current.norm_stats))
            return current
        found = compute(self.recipe, dataset).model_copy(update={"inputs": inputs})
        self._check_unchanged("norm_stats", sha256_json(found.norm_stats))
        return self._keep(found)

    def plan(self, machine: Machine, dataset: Dataset | None, *, say: Callable[[str], None] = lambda _: None, **asked: Any) -> Plan:
        """The plan for the free memory of this moment; the compiler's answer behind it is kept in the cache. `asked`: see plan.choose.Ask."""
        if self.backend == "openpi":
            return self._keep(self._plan_openpi(machine, asked.get("device")))
        from harness.plan.atlas import shipped
        from harness.plan.choose import Ask, Tools, choose

        inputs = sha256_json([self.recipe, machine, None if dataset is None else dataset.sha256, asked])
        return self._keep(choose(self.recipe, machine, dataset, Ask(**asked), inputs=inputs, tools=Tools(shipped(), say=say)))

    def _plan_openpi(self, machine: Machine, device: str | None) -> Plan:
        from harness.openpi.run import plan_run

        inputs = sha256_json([self.recipe, machine, "openpi", device, self._fsdp])
        return plan_run(self.recipe, machine, device, self._fsdp, inputs=inputs)

    def carry_out(self, plan: Plan) -> list[str]:
        """The deviations of the chosen plan; from here on the recipe is the one that it carries out, in the run's directory too."""
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
                f"{self.run.path} was started with another {what}: {self.recipe.data.dataset} has changed since; nothing was overwritten",
                got=f"sha256 {sha256[:16]}",
                need=f"sha256 {was[:16]} of the run's manifest",
                fix="restore the data, or start a run of its own: --name NEW without --resume",
            )

    def _keep(self, artifact: A) -> A:
        if self.run is not None:
            self.run.write(artifact)
        return artifact


def _signature(root: Path) -> list[Any]:
    """Path, size and time of every file: cheap to read, and other than before when a byte has been written."""
    files = sorted(walk(root))
    return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def prepare_jax(plan: Plan, machine: Machine) -> None:
    """Sets what JAX reads once, when it is imported, so that it starts on the plan's device."""
    assert plan.chosen is not None
    start_on(machine, plan.chosen.levers.platform, plan.device_uuid, plan.usable_bytes)
    if plan.device_uuids:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(plan.device_uuids)
    if plan.memory_fraction is not None:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{plan.memory_fraction:.3f}"


def start_on(machine: Machine, platform: str, uuid: str | None, usable_bytes: int | None) -> None:
    """Sets the device, its share of memory, and where compiled programs are kept; JAX must not have been imported."""
    os.environ["JAX_PLATFORMS"] = platform
    if platform == "cuda":
        # The images set it too; a verb that was started in another way must compute the same bits.
        os.environ["XLA_FLAGS"] = deterministic()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_root() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    card = next((gpu for gpu in machine.gpus if uuid is not None and gpu.uuid == uuid), None)
    if card is not None and card.uuid is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card.uuid
        if usable_bytes and card.total_bytes:
            # JAX takes a fraction of *total* memory at its first operation; ours follows from what NVML says is free.
            os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{usable_bytes / card.total_bytes:.3f}"


def write_dataset_page(chain: Chain, dataset: Dataset) -> Path:
    """The path of dataset.html, in the run's directory or else in the working directory."""
    from harness.data.lerobot import open_dataset
    from harness.data.tokenizer import load_tokenizer
    from harness.data.transforms import normalize
    from harness.report.dataset_page import render

    data, stats = chain.recipe.data, chain.stats(dataset)
    # Unknown lengths are those of a tokenizer that is not here.
    encode = load_tokenizer(data.tokenizer).encode if dataset.longest_prompt_tokens is not None else None
    tokens = {task: len(encode(task)) for task in dataset.tasks} if encode is not None else {}
    frames = open_dataset(dataset.path, state=data.state, actions=data.actions)
    page = render(
        dataset,
        stats,
        frames,
        tokens,
        lambda key, values: normalize(values, stats.norm_stats["state" if key == "state" else "actions"], data.normalization),
        data.normalization,
    )
    path = (chain.run.path if chain.run else Path()) / DATASET_PAGE
    write_atomic(path, page)
    return path


def write_report(run: RunDir) -> Path:
    """The path of report.html, written from the files of the run."""
    from harness.report.page import render

    path = run.path / REPORT
    write_atomic(path, render(run))
    return path
