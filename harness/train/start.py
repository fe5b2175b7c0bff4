"""The state before the first step: from released weights, or from random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from harness.model.pi05 import Params, initialize
from harness.recipe import Recipe
from harness.train.state import TrainState, abstract_params, state_from


def first_state(recipe: Recipe, key: jax.Array, say: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]]:
    """The state at step 0, and where its parameters come from (for the manifest).

    Raises: HarnessError of the download and of the weights.
    """
    if recipe.weights.source is None:
        say("initializing random parameters")
        return jax.jit(lambda key: state_from(initialize(recipe.model, key), recipe))(key), {"source": "random", "seed": recipe.train.seed}
    say(f"loading weights from {recipe.weights.source}")
    params, provenance = _load(recipe, key)
    # The parameters are given away: no second copy of them stays on the device.
    return jax.jit(lambda params: state_from(params, recipe), donate_argnums=0)(params), provenance


def _load(recipe: Recipe, key: jax.Array) -> tuple[Params, dict[str, Any]]:
    from harness.checkpoint.weights import load_params
    from harness.download import fetch_tree

    assert recipe.weights.source is not None
    tree = fetch_tree(recipe.weights.source)
    loaded = load_params(tree.path, abstract_params(recipe), initialize=_initializer(recipe, key), allow_missing=lambda path: "lora" in path)
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in tree.files.items()}
    return loaded.params, {"source": recipe.weights.source, "files": files, "initialized": loaded.initialized}


def _initializer(recipe: Recipe, key: jax.Array) -> Callable[[str, jax.ShapeDtypeStruct], jax.Array]:
    """Initializes one parameter as upstream would; XLA drops the computation of all others."""

    def one(path: str, struct: jax.ShapeDtypeStruct) -> jax.Array:
        make = jax.jit(lambda key: initialize(recipe.model, key)[path].astype(struct.dtype), out_shardings=struct.sharding)
        return make(key)

    return one
