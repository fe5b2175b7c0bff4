"""Refusals of a recipe whose states and actions cannot be turned into the model's. Reads no row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.artifacts import DimensionStats
from harness.data.space import ALOHA_DIMENSIONS
from harness.errors import HarnessError
from harness.received.text import word
from harness.recipe.dimensions import numbers_of, ranges_of
from harness.recipe.schema import Recipe


def check_space(recipe: Recipe, path: Path, state: int, actions: int, likely: str) -> None:
    """Checks the recipe against a dataset at `path`, by its numbers of dimensions. Without a state it is 0.

    `likely` is the feature that a fix names as the state.

    Raises: HarnessError "state-needed", "relative-dimension-missing" or "adapt-other-robot".
    """
    data, key = recipe.data, recipe.data.key
    numbers = numbers_of(data.relative)
    if state == 0 and recipe.model.discrete_state_input:
        raise HarnessError(
            "state-needed",
            f"model.discrete_state_input writes the state into the prompt, and {key}.state is null",
            got="no state",
            need="a feature of the dataset as the state",
            fix=f"--set {word(f'{key}.state={likely}')}, or --set model.discrete_state_input=false",
        )
    if state == 0 and numbers:
        raise HarnessError(
            "state-needed",
            f"{key}.relative ({','.join(data.relative or [])}) takes the state from the actions, and"
            f" {key}.state is null",
            got="no state",
            need="a feature of the dataset as the state",
            fix=f"--set {word(f'{key}.state={likely}')}, or --set {word(key)}.relative=null",
        )
    beyond = [d for d in numbers if d >= min(state, actions)]
    if beyond:
        left = ",".join(ranges_of([d for d in numbers if d not in beyond])) or "null"
        raise HarnessError(
            "relative-dimension-missing",
            f"{key}.relative names dimensions that {path} does not have in both its state and its actions",
            got=f"{', '.join(ranges_of(beyond))}; the state has {state} dimensions, the actions {actions}",
            need=f"dimensions from 0 to {min(state, actions) - 1}",
            fix=f"--set {word(f'{key}.relative={left}')}",
        )
    if data.adapt == "aloha" and (state, actions) != (ALOHA_DIMENSIONS, ALOHA_DIMENSIONS):
        raise HarnessError(
            "adapt-other-robot",
            f"{key}.adapt is 'aloha', and {path} is of another robot",
            got=f"a state of {state} dimensions, actions of {actions}",
            need=f"{ALOHA_DIMENSIONS} of each: two arms of six joints and a gripper",
            fix=f"--set {word(key)}.adapt=null",
        )


def check_has_state(recipe: Recipe, stats: Mapping[Any, DimensionStats]) -> None:
    """Checks that there are statistics of a state that is to be written into the prompt.

    Raises: HarnessError "state-needed".
    """
    if recipe.model.discrete_state_input and "state" not in stats:
        raise HarnessError(
            "state-needed",
            "model.discrete_state_input writes the normalized state into the prompt, and the statistics have"
            " no state",
            got="statistics of the actions alone",
            need="statistics of the state as well",
            fix="harness stats with this dataset and recipe, or --set model.discrete_state_input=false",
        )
