"""The run, the recipe and the trainer that a command means."""

from __future__ import annotations

import os
from pathlib import Path

from harness.artifacts import Manifest
from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.flow.trainer import Trainer
from harness.flow.trainer_openpi import Openpi
from harness.flow.trainer_ours import OURS
from harness.received import consent
from harness.received.files import there
from harness.received.names import why_no_name
from harness.received.text import word
from harness.recipe.load import load_recipe, recipe_from, shipped_sources
from harness.recipe.schema import Recipe
from harness.run.directory import MANIFEST, RECIPE, RunDir, latest_run, new_run, runs_root
from harness.run.status import saved_step

TRAINERS: dict[str, Trainer] = {trainer.name: trainer for trainer in (OURS, Openpi())}


def default_recipe() -> str:
    """The recipe when none is named: $HARNESS_RECIPE, which each compose service sets, else the small one."""
    return os.environ.get("HARNESS_RECIPE", "smoke")


def check_name(name: str) -> None:
    """Refuses a --name that is no run's.

    Raises: HarnessError "run-name-invalid".
    """
    if (reason := why_no_name(name)) is not None:
        raise HarnessError(
            "run-name-invalid",
            f"--name cannot be a run's: {reason}",
            got=name,
            need="a name, or --run DIR",
            fix="--name smoke-2",
        )


def find_run(run: Path | None, name: str | None, recipe: str | None, *, resume: bool) -> RunDir:
    """The run directory that a command means: the named one, the recipe's latest (resume), or a new one.

    Raises: HarnessError "nothing-to-resume", "run-and-name", "run-name-invalid".
    """
    if run is not None and name is not None:
        raise HarnessError(
            "run-and-name", "--run and --name both say where the run is", fix="give one of the two"
        )
    if name is not None:
        check_name(name)
    if run is not None or name is not None:
        found = RunDir(run if run is not None else runs_root() / str(name))
        if resume and not found.path.is_dir():
            raise HarnessError(
                "nothing-to-resume",
                f"there is no run {found.path}",
                need="a run directory",
                fix="leave --resume out, or correct the path",
            )
        return found
    stem = Path(recipe or default_recipe()).stem
    if not resume:
        return new_run(stem)
    latest = latest_run(stem)
    if latest is None:
        raise HarnessError(
            "nothing-to-resume",
            f"no run of {stem} in {runs_root()}",
            need="a run to go on with",
            fix="leave --resume out, or give --run DIR",
        )
    return latest


def recipe_of(run: RunDir, named: str | None, overrides: list[str], *, own_first: bool) -> Recipe:
    """The named recipe, with the overrides. If none is named and `own_first` is set, the run's own recipe.

    Raises: HarnessError "run-of-another-recipe" when the run has started with another, and those of
    `load_recipe`.
    """
    own = _own_recipe(run, overrides) if own_first and named is None else None
    if own is not None:
        # The package's own addresses need no consent, whichever run names them.
        consent.grant_shipped(shipped_sources())
    recipe = load_recipe(named or default_recipe(), overrides) if own is None else own
    kept = _own_recipe(run, []) if run.started else None
    if kept is not None and kept.sha256() != recipe.sha256():
        raise HarnessError(
            "run-of-another-recipe",
            f"{run.path} is a run of another recipe (or of the same with other --set)",
            got=recipe.name,
            need=f"the recipe in {run.path / RECIPE}",
            fix=(
                "another --run or --name for another recipe; or leave --recipe, --set and --dataset out to"
                " use this run's own"
            ),
        )
    return recipe


def _own_recipe(run: RunDir, overrides: list[str]) -> Recipe | None:
    """The recipe in the run's own file; without that file, the one in its manifest. None if it has neither.

    Raises: those of `load_recipe` and `recipe_from`.
    """
    path = run.path / RECIPE
    if not there(path):
        manifest = run.read(Manifest)
        where = str(run.path / MANIFEST)
        return None if manifest is None else recipe_from(dict(manifest.recipe), overrides, where=where)
    try:
        found = load_recipe(str(path), root=run.path)
    except HarnessError as error:
        # A directory of that name is no recipe either.
        if error.code not in ("recipe-invalid", "recipe-unknown") or not there(run.path / MANIFEST):
            raise
        fix = (
            f"mv {word(path)} {word(f'{path}.old')} && harness train --resume --run {word(run.path)}; the"
            " run's manifest has its recipe too, with the steps that it was started for"
        )
        raise HarnessError(error.code, error.what, got=error.got, need=error.need, fix=fix) from error
    return load_recipe(str(path), overrides, root=run.path) if overrides else found


def refuse_started(run: RunDir, *, named: bool) -> None:
    """Checks that the run has not been trained yet. `named`: it was given by --name, not by its directory.

    Raises: HarnessError "run-exists".
    """
    if run.started:
        path = run.path if run.path.name not in ("", "..") else run.path.resolve()
        beside = path.with_name(f"{path.name}-2")
        raise HarnessError(
            "run-exists",
            f"{run.path} has been trained already; nothing was overwritten",
            need="a new run, or --resume",
            fix=(
                f"add --resume to go on, or --name {word(beside.name)} for another run"
                if named
                else f"add --resume to go on, or --run {word(beside)} for another run"
            ),
        )


def refuse_behind(run: RunDir, steps: int, backend: Backend) -> None:
    """Checks that a resume to `steps` does not end before what is saved: nothing would be trained.

    The run's recipe would have fewer steps than the run took.

    Raises: HarnessError "steps-behind".
    """
    saved = saved_step(run, backend, [])
    if saved is not None and steps < saved:
        raise HarnessError(
            "steps-behind",
            f"{run.path} is at step {saved} already; nothing was changed",
            got=f"train.steps {steps}, which counts from the run's beginning",
            need=f"more than {saved} steps, to train further",
            fix=f"--steps {saved + steps} for so many more, or --steps {saved} to leave it as it is",
        )


def trainer_of(run: RunDir | None, asked: Backend | None = None) -> Trainer:
    """The trainer of a run: the one that started it, else the one asked for, else $HARNESS_BACKEND's or ours.

    Raises: HarnessError "run-of-another-backend", "backend-unknown".
    """
    manifest = run.read(Manifest) if run is not None else None
    default = os.environ.get("HARNESS_BACKEND") or OURS.name
    if default not in TRAINERS:
        raise HarnessError(
            "backend-unknown",
            f"HARNESS_BACKEND={default} names no trainer",
            got=default,
            need=" or ".join(TRAINERS),
            fix="HARNESS_BACKEND=openpi, or unset it",
        )
    if run is None or manifest is None:
        return TRAINERS[asked or default]
    own = manifest.backend
    if asked not in (None, own):
        raise HarnessError(
            "run-of-another-backend",
            f"{run.path} was trained by another trainer, whose checkpoints this one does not resume from",
            got=f"--backend {asked}",
            need=f"--backend {own}",
            fix=(
                "leave --backend out to go on; or a run of its own: --name NEW, with --set weights.source=…"
                " to start from its checkpoint"
            ),
        )
    return TRAINERS[own]
