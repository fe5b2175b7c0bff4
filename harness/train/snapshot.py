"""Converts between the training state and a checkpoint; a restored state is the same bit for bit.

Quantized frozen kernels are saved as the bfloat16 weights that they stand for. `params` is therefore openpi's
and holds the network that was trained. On restore they become the same codes again.
"""

from __future__ import annotations

from typing import Any

import jax

from harness.checkpoint.store import Store
from harness.checkpoint.weights import directory_sha256, load_params, params_directories
from harness.errors import HarnessError
from harness.model.quantize import Quantized
from harness.recipe.schema import Recipe
from harness.run.steps import BASE
from harness.train.arrays import whole
from harness.train.copies import with_copies
from harness.train.setup import Setup, keeper
from harness.train.state import TrainState


def base_of(recipe: Recipe) -> dict[str, str] | None:
    """The weights that hold the frozen parameters for checkpoints of this recipe.

    None if the checkpoints hold all parameters themselves.
    """
    if recipe.train.save == "all":
        return None
    source = str(recipe.weights.source)
    return {"source": source, "sha256": directory_sha256(params_directories(source)[0])}


def save(
    store: Store,
    state: TrainState,
    *,
    step: int,
    norm_stats_json: str,
    asset_id: str,
    record: dict[str, Any],
    base: dict[str, str] | None = None,
) -> None:
    """Starts the save of `state`.

    openpi's `params` are the parameters to deploy: the average, if there is one. With `base`, only the
    trained parameters are saved.
    """
    params, rest = saved(state, only_trained=base is not None)
    store.save(
        step,
        params=params,
        train_state=rest,
        norm_stats_json=norm_stats_json,
        asset_id=asset_id,
        record=record,
        base=base,
    )


def restore(store: Store, setup: Setup, step: int) -> TrainState:
    """The state that `save` was given, each leaf read directly into its shards.

    The number of devices that saved it does not matter. The copies of the plan that goes on are made here.
    Raises: HarnessError "recipe-differs" if another recipe wrote it, and those of `Store.restore` and
    `load_params`.
    """
    recipe, layout, keep = setup.recipe, setup.layout, keeper(setup)
    shapes = layout.structs(setup.shapes.state)
    dense = layout.structs(setup.shapes.params) | (shapes.trained if shapes.ema is None else shapes.ema)
    directory = store.directory / str(step)
    left_out = (directory / BASE).is_file()
    params = {path: dense[path] for path in shapes.trained} if left_out else dense
    restored = store.restore(step, params=params, train_state=_rest(shapes), keep=keep)
    if restored.record.get("recipe_sha256") != recipe.sha256():
        raise HarnessError(
            "recipe-differs",
            f"{directory} was written by another recipe",
            got=str(restored.record.get("recipe_sha256"))[:12],
            need=recipe.sha256()[:12],
            fix=(
                "resume with the recipe and --set options of the run's recipe.yaml, or give the new recipe a"
                " run of its own"
            ),
        )
    trained = {path: value for path, value in restored.params.items() if path in shapes.trained}
    everything = load_params(directory, dense, keep=keep).params if left_out else restored.params
    frozen = {path: everything[path] for path in shapes.frozen}
    raw = restored.train_state["params"]
    state = TrainState(
        restored.train_state["step"],
        raw if shapes.ema is not None else trained,
        frozen,
        restored.train_state["opt_state"],
        trained if shapes.ema is not None else None,
    )
    return with_copies(state, shapes, layout)


def saved(state: TrainState, *, only_trained: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`params`, `train_state`) of a checkpoint of `state`.

    `params` holds all parameters, or only the trained ones.
    """
    return {
        path: _stored(value)
        for path, value in state.averaged.items()
        if path in state.trained or not only_trained
    }, _rest(state)


def _rest(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": {} if state.ema is None else state.trained,
        "opt_state": state.opt_state,
    }


def _stored(value: Any) -> Any:
    """An array as a checkpoint holds it; for an abstract state, its shape and type."""
    if not isinstance(value, Quantized):
        return value
    return (
        jax.ShapeDtypeStruct(value.shape, value.dtype)
        if isinstance(value.codes, jax.ShapeDtypeStruct)
        else value.on_host(whole)
    )
