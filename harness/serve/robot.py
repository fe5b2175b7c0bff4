"""What is known of the robot that a checkpoint acts for: widths, statistics, rate.

Whoever serves need not have the dataset. What it would say is taken from the run that saved the checkpoint,
else from the statistics alone, and what then stays unknown is null with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.artifacts import Dataset, DimensionStats, Feature
from harness.checkpoint.locate import Located
from harness.data.compare import first, width_without_padding
from harness.data.lerobot import LeRobotDataset
from harness.data.mapping import widths_of
from harness.data.norm_files import Key
from harness.data.space import ALOHA_DIMENSIONS
from harness.errors import HarnessError
from harness.predict.predict import checkpoint_stats, stats_of, stored_stats
from harness.received.text import one_line
from harness.recipe.dimensions import numbers_of
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir


class Robot(NamedTuple):
    """`state` and `actions` are numbers of dimensions; those of the state are None if nobody says them.

    `fps` is the rate of the recordings in frames a second, None if unknown. `stats` has no padding. `names`
    are those of the dimensions of "state" and "actions", where the dataset was named and has them.
    """

    state: int | None
    actions: int
    fps: float | None
    stats: dict[str, DimensionStats]
    unknown: dict[str, str]
    names: dict[str, list[str]] = {}


def robot_of(located: Located, recipe: Recipe, data: LeRobotDataset | None) -> Robot:
    """The robot by its dataset, else by the run's dataset.json, else by the statistics alone.

    Raises: HarnessError "asset-missing", "dataset-of-other-dimensions", "norm-stats-invalid"; UnsafeFile.
    """
    if data is not None:
        widths = widths_of(recipe.data, data.features)
        return Robot(
            widths["state"] or None,
            widths["actions"],
            data.fps,
            dict(checkpoint_stats(located, recipe, data)),
            {},
            _names(recipe, data),
        )
    recorded = _recorded(located, recipe)
    widths = widths_of(recipe.data, recorded.features) if recorded is not None else {}
    in_prompt = recipe.model.discrete_state_input and recipe.data.state is not None
    wanted: tuple[Key, ...] = ("actions", "state") if in_prompt else ("actions",)
    where, read = stored_stats(located, recipe, wanted)
    state = widths.get("state") or _state_width(located, recipe)
    stats: dict[str, DimensionStats] = {
        key: _unpadded(where, key, read, widths.get(key), recipe) for key in wanted
    }
    unknown = {}
    if recorded is None:
        unknown["fps"] = "no run with a dataset.json saved this checkpoint; --dataset names one"
    if in_prompt:
        state = _width(stats["state"])
    if state is None and recipe.data.adapt is not None:
        state = ALOHA_DIMENSIONS
    if state is None and recipe.data.state is not None:
        unknown["state.dimensions"] = (
            "the state does not enter the model, and its statistics are padded or missing; --dataset names it"
        )
    fps = recorded.fps if recorded is not None else None
    return Robot(state, _width(stats["actions"]), fps, stats, unknown)


def _names(recipe: Recipe, data: LeRobotDataset) -> dict[str, list[str]]:
    """The names of each dimension, for the vectors all of whose features have them."""
    vectors = {"state": recipe.data.state_features, "actions": (recipe.data.actions,)}
    found = {}
    for key, features in vectors.items():
        parts = [data.names.get(name, []) for name in features]
        if parts and all(parts):
            found[key] = [one_line(name) for part in parts for name in part]
    return found


def _recorded(located: Located, recipe: Recipe) -> Dataset | None:
    """The first dataset of the run's dataset.json, if it has what the recipe names."""
    if located.run is None:
        return None
    try:
        found = RunDir(located.run).read(Dataset)
    except HarnessError:
        # Another file of the run than the weights; without it less is known, and that is said.
        return None
    if found is None:
        return None
    wanted = {recipe.data.actions, *recipe.data.state_features}
    return found.parts[0] if wanted <= _vectors(found.parts[0].features) else None


def _state_width(located: Located, recipe: Recipe) -> int | None:
    """The width of a state that does not enter the model, by statistics that have no padding; else None.

    Of padded ones it is not known whether a last zero is a dimension or padding.
    """
    if recipe.data.state is None:
        return None
    try:
        found = stored_stats(located, recipe, ("state", "actions"))[1].get("state")
    except HarnessError:
        # They need not be there.
        return None
    width = None if found is None else _width(found)
    return width if found is not None and width == width_without_padding(found, 1) else None


def _vectors(features: Mapping[str, Feature]) -> set[str]:
    return {name for name, feature in features.items() if len(feature.shape) == 1 and feature.shape[0] > 0}


def _unpadded(
    where: Path, key: Key, read: Mapping[str, DimensionStats], width: int | None, recipe: Recipe
) -> DimensionStats:
    """The statistics of a key, without upstream's zeros after the real dimensions."""
    least = ALOHA_DIMENSIONS if recipe.data.adapt is not None else 1
    if key == "actions":
        least = max([least, *(number + 1 for number in numbers_of(recipe.data.relative))])
    stored = stats_of(key, read, where)
    return first(stored, width if width is not None else width_without_padding(stored, least))


def _width(stats: DimensionStats) -> int:
    return len(stats.mean or stats.q01)
