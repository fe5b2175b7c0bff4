"""Refuses an export to LeRobot whose files would make another policy than the one that was trained.

openpi's own training configurations express all that a recipe can say; the model card says which one.

Source: lerobot src/lerobot/policies/pi05/processor_pi05.py, processor/relative_action_processor.py, commit
7427f31.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.artifacts import DimensionStats
from harness.errors import HarnessError
from harness.recipe.dimensions import numbers_of
from harness.recipe.schema import Data, Recipe


class Widths(NamedTuple):
    """Dimensions of a dataset's state (0: none) and actions."""

    state: int
    actions: int


def check_expressed(
    recipe: Recipe, stats: Mapping[str, DimensionStats] | None, widths: list[Widths] | None
) -> None:
    """Checks that LeRobot's pipelines can do what the recipe does to states, actions and prompts.

    `stats` are those of actions and state; None if no pipeline is written. `widths` are those of the recipe's
    datasets; None if they are not known.

    Raises: HarnessError "export-not-expressible", "export-mixture-differs", "statistics-needed".
    """
    parts = [part.data for part in recipe.parts()]
    if any(part.adapt for part in parts):
        raise _not_expressible(
            "LeRobot's pi05 has no step that turns ALOHA's joints and grippers into those of the training",
            "data.adapt: aloha",
            "a recipe without data.adapt",
        )
    if len(parts) > 1:
        _check_alike(parts, widths)
    if stats is None:
        return
    if (recipe.model.discrete_state_input or parts[0].relative) and "state" not in stats:
        raise HarnessError(
            "statistics-needed",
            "the policy reads the state, and there are no statistics of it",
            got="statistics of the actions alone",
            need="statistics of the state as well",
            fix="export a step that was saved by training: the statistics belong to the weights",
        )
    if parts[0].relative and "actions" in stats:
        _check_width(parts[0], stats)


def _check_alike(parts: list[Data], widths: list[Widths] | None) -> None:
    """Refuses a mixture for which one pipeline would have to do different things."""
    for name in ("relative", "prompt", "default_prompt"):
        said = {part.key: _said(getattr(part, name)) for part in parts}
        if len(set(said.values())) > 1:
            raise _differs(
                f"the datasets of the mixture differ in {name}, and a LeRobot policy has one pipeline",
                "; ".join(f"{key}.{name} is {value}" for key, value in list(said.items())[:4]),
                f"the same {name} for all of them",
            )
    if widths is None or len(widths) != len(parts):
        raise HarnessError(
            "export-mixture-differs",
            "whether the datasets of the mixture have the same dimensions is not recorded beside this step",
            got="a step outside of its run",
            need="the run's dataset.json, since a LeRobot policy has one state and one action",
            fix="export the step where its run is: runs/RUN/checkpoints/STEP; or --to openpi-pytorch",
        )
    if len(set(widths)) > 1:
        pairs = zip(parts, widths, strict=True)
        raise _differs(
            "the datasets of the mixture have different dimensions, and a LeRobot policy has one state and"
            " one action",
            "; ".join(f"{part.key}: state {w.state}, actions {w.actions}" for part, w in [*pairs][:4]),
            "the same dimensions for all of them",
        )


def _said(value: Any) -> str:
    return "null" if value is None else ",".join(value) if isinstance(value, list) else repr(value)


def _differs(what: str, got: str, need: str) -> HarnessError:
    return HarnessError(
        "export-mixture-differs",
        what,
        got=got,
        need=need,
        fix="--to openpi-pytorch: the model card then says what each dataset's configuration needs",
    )


def _not_expressible(what: str, got: str, need: str) -> HarnessError:
    return HarnessError(
        "export-not-expressible",
        what,
        got=got,
        need=need,
        fix="--to openpi-pytorch: its training configuration can, and the model card says how",
    )


def _check_width(data: Data, stats: Mapping[str, DimensionStats]) -> None:
    """Refuses a state with fewer dimensions than the actions, which LeRobot takes one from each other."""
    state, actions = (width(stats[key]) for key in ("state", "actions"))
    if state < actions:
        raise _not_expressible(
            "LeRobot takes the whole state from relative actions, and this state is shorter than the actions",
            f"a state of {state} dimensions, actions of {actions}",
            "a state with at least the dimensions of the actions",
        )
    beyond = [number for number in numbers_of(data.relative) if number >= actions]
    if beyond:
        raise HarnessError(
            "statistics-needed",
            "data.relative names dimensions that the statistics of the actions do not have",
            got=f"dimension {beyond[0]}; the statistics have {actions}",
            need="the statistics that the weights were trained with",
            fix="export a step that was saved by training: the statistics belong to the weights",
        )


def width(stats: DimensionStats) -> int:
    """The number of dimensions. Some of the statistics may be missing."""
    return max(len(stats.mean), len(stats.q01))
