"""Finds the step that a path means, and the recipe that it was trained with, from names and metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.checkpoint.inspect import inspect
from harness.checkpoint.pytorch import step_of, weights_location
from harness.checkpoint.scan import find
from harness.checkpoint.steps import has_weights
from harness.checkpoint.tensors import WEIGHTS_FILE
from harness.download.cache import fetch_tree, is_remote
from harness.download.meter import Progress
from harness.errors import HarnessError
from harness.received.consent import Named
from harness.received.files import ARTIFACT_BYTES, there
from harness.received.json import read_json
from harness.received.text import word
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.schema import Recipe
from harness.run.steps import EXPORT, PARAMS, RECORD


class Located(NamedTuple):
    """The step that was found. `path` is a step directory, or the directory of a lone `params` directory.

    `run` is the run that saved it, if there is one.
    """

    path: Path
    step: int | None
    run: Path | None


def locate(source: str, *, progress: Progress | None = None) -> Located:
    """The newest step of `source` whose weights are whole. Its train_state may have been deleted.

    `source` is a run, a checkpoint directory, one step or its `params`; local, gs:// or https://. Or a local
    step of openpi's PyTorch trainer or of LeRobot.
    Raises: HarnessError "checkpoint-interrupted" if no step is whole; those of `harness.checkpoint.inspect`
    and of the download.
    """
    path = (
        fetch_tree(source, progress=progress, named=Named(local="DIR instead of the address")).path
        if is_remote(source)
        else Path(source)
    )
    report = inspect(path)
    weights = weights_location(path) if report.layout == "pytorch" else None
    if weights is not None:
        location = weights.parent if weights.name == WEIGHTS_FILE or path.is_dir() else weights
        return Located(location, step_of(location), None)
    whole = [
        step for step in report.steps if has_weights(step) and any(item.name == PARAMS for item in step.items)
    ]
    if not whole:
        lines = [
            f"{Path(step.path).name} lacks {', '.join(step.missing) or 'params'}" for step in report.steps
        ]
        lines += [f"{Path(save.path).name} was never finished" for save in report.interrupted]
        raise HarnessError(
            "checkpoint-interrupted",
            f"{source} has no whole checkpoint",
            got="; ".join(lines),
            need="a step whose save was finished",
            fix=(
                f"take another step or run (harness inspect {word(source)} lists what is there), or train on"
                " from an earlier one with --resume"
            ),
        )
    newest = Path(whole[-1].path)
    is_params = newest.name == PARAMS and not (newest / PARAMS).is_dir()
    return Located(newest.parent if is_params else newest, whole[-1].step, find(path).run)


def recipe_of(located: Located, named: str | None, overrides: list[str] | None = None) -> Recipe:
    """The recipe called `named`, or else the recipe that the step records.

    For a merged export it is the recorded recipe without adapters.
    Raises: HarnessError "recipe-needed", "record-invalid", and those of `load_recipe`.
    """
    if named is not None:
        return load_recipe(named, overrides)
    for name in (RECORD, EXPORT):
        found = recorded(located.path, name)
        if found is None:
            continue
        if name == EXPORT:
            # A merged checkpoint has no frozen parameters and leaves none out.
            adapters = [f"model.{expert}.lora=null" for expert in ("paligemma", "action_expert")]
            overrides = [*adapters, "train.trained=full", "train.save=all", *(overrides or [])]
        return recipe_from(found["recipe"], overrides, where=f"the recipe in {located.path / name}")
    raise HarnessError(
        "recipe-needed",
        f"{located.path} does not record a recipe: the harness did not write it",
        need="the recipe of the model, with the camera and feature names of the dataset",
        fix="--recipe pi05_libero (or a YAML file of your own)",
    )


def is_of_mixture(located: Located) -> bool:
    """True if the step records that it learned from a mixture of datasets.

    Raises: HarnessError "record-invalid".
    """
    recipes = ((recorded(located.path, name) or {}).get("recipe", {}) for name in (RECORD, EXPORT))
    return any(isinstance(data := each.get("data"), dict) and data.get("datasets") for each in recipes)


def recorded(step: Path, name: str) -> dict[str, Any] | None:
    """What the step's file `name` records, or None if there is no file or it names no recipe."""
    path = step / name
    if not there(path):
        return None
    try:
        body = read_json(path, step, ARTIFACT_BYTES)
        recipe = body.get("recipe")
    except (OSError, ValueError, AttributeError) as error:
        raise HarnessError(
            "record-invalid",
            f"{path} is not a record of the harness: {error}",
            fix="--recipe NAME, or another step",
        ) from error
    return dict(body) if isinstance(recipe, dict) else None
