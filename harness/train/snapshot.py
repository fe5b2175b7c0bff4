"""Between the training state and a checkpoint: what is saved, and the state that comes back bit for bit."""

from __future__ import annotations

from typing import Any

from harness.checkpoint.store import Store
from harness.errors import HarnessError
from harness.recipe import Recipe
from harness.train.state import TrainState, abstract_state


def save(store: Store, state: TrainState, *, step: int, norm_stats_json: str, asset_id: str, record: dict[str, Any]) -> None:
    """Starts the save of `state`; the parameters to deploy (the average, where there is one) are openpi's `params`."""
    params, rest = _split(state)
    store.save(step, params=params, train_state=rest, norm_stats_json=norm_stats_json, asset_id=asset_id, record=record)


def restore(store: Store, recipe: Recipe, step: int) -> TrainState:
    """The state that `save` was given.

    Raises: HarnessError "recipe-differs" when another recipe wrote it, and those of `Store.restore`.
    """
    shapes = abstract_state(recipe)
    params, rest = _split(shapes)
    restored = store.restore(step, params=params, train_state=rest)
    if restored.record.get("recipe_sha256") != recipe.sha256():
        raise HarnessError(
            "recipe-differs",
            f"{store.directory / str(step)} was written by another recipe",
            got=str(restored.record.get("recipe_sha256"))[:12],
            need=recipe.sha256()[:12],
            fix="resume with the recipe and --set options of the run's recipe.yaml, or give the new recipe a run of its own",
        )
    trained = {path: value for path, value in restored.params.items() if path in shapes.trained}
    frozen = {path: value for path, value in restored.params.items() if path in shapes.frozen}
    raw = restored.train_state["params"]
    return TrainState(
        restored.train_state["step"],
        raw if shapes.ema is not None else trained,
        frozen,
        restored.train_state["opt_state"],
        trained if shapes.ema is not None else None,
    )


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    raw = {} if state.ema is None else state.trained
    return state.averaged, {"step": state.step, "params": raw, "opt_state": state.opt_state}
