"""Between the training state and a checkpoint: what is saved, and the state that comes back bit for bit."""

from __future__ import annotations

from typing import Any

from harness.checkpoint.leaves import BASE
from harness.checkpoint.store import Store
from harness.checkpoint.weights import fingerprint, load_params, params_directories
from harness.errors import HarnessError
from harness.recipe import Recipe
from harness.train.state import TrainState, abstract_params, abstract_state


def base_of(recipe: Recipe) -> dict[str, str] | None:
    """The weights that checkpoints of this recipe leave the frozen parameters to, or None when they hold all of them."""
    if recipe.train.save == "all":
        return None
    source = str(recipe.weights.source)
    return {"source": source, "sha256": fingerprint(params_directories(source)[0])}


def save(
    store: Store, state: TrainState, *, step: int, norm_stats_json: str, asset_id: str, record: dict[str, Any], base: dict[str, str] | None = None
) -> None:
    """Starts the save of `state`; the parameters to deploy (the average, where there is one) are openpi's `params`.

    With `base`, only what was trained is saved.
    """
    params, rest = _split(state)
    if base is not None:
        params = {path: params[path] for path in state.trained}
    store.save(step, params=params, train_state=rest, norm_stats_json=norm_stats_json, asset_id=asset_id, record=record, base=base)


def restore(store: Store, recipe: Recipe, step: int) -> TrainState:
    """The state that `save` was given.

    Raises: HarnessError "recipe-differs" when another recipe wrote it, and those of `Store.restore` and `load_params`.
    """
    shapes = abstract_state(recipe)
    params, rest = _split(shapes)
    directory = store.directory / str(step)
    left_out = (directory / BASE).is_file()
    if left_out:
        params = {path: params[path] for path in shapes.trained}
    restored = store.restore(step, params=params, train_state=rest)
    if restored.record.get("recipe_sha256") != recipe.sha256():
        raise HarnessError(
            "recipe-differs",
            f"{directory} was written by another recipe",
            got=str(restored.record.get("recipe_sha256"))[:12],
            need=recipe.sha256()[:12],
            fix="resume with the recipe and --set options of the run's recipe.yaml, or give the new recipe a run of its own",
        )
    trained = {path: value for path, value in restored.params.items() if path in shapes.trained}
    everything = load_params(directory, abstract_params(recipe)).params if left_out else restored.params
    frozen = {path: everything[path] for path in shapes.frozen}
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
