"""The state before the first step: from released weights, or from random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from harness.checkpoint.weights import fingerprint as directory_sha256
from harness.checkpoint.weights import load_params
from harness.download import fetch_tree, is_remote
from harness.model.pi05 import Params, initialize
from harness.parameters import fingerprint, group_of
from harness.recipe import Recipe
from harness.train.job import Watcher
from harness.train.state import TrainState, abstract_params, state_from
from harness.train.step import kernel_norm
from harness.units import format_bytes


def first_state(recipe: Recipe, key: jax.Array, watcher: Watcher) -> tuple[TrainState, dict[str, Any]]:
    """The state at step 0, and where its parameters come from (for the manifest).

    Raises: HarnessError of the download and of the weights.
    """
    if recipe.weights.source is None:
        watcher.say("initializing random parameters")
        return jax.jit(lambda key: state_from(initialize(recipe.model, key), recipe))(key), {"source": "random", "seed": recipe.train.seed}
    watcher.say(f"loading weights from {recipe.weights.source}")
    params, provenance = _load(recipe, key, watcher)
    verdict, sentence = fingerprint(recipe.model, float(jax.jit(kernel_norm)(params)))
    (watcher.warn if verdict == "differs" else watcher.say)(sentence)
    # The parameters are given away: no second copy of them stays on the device.
    return jax.jit(lambda params: state_from(params, recipe), donate_argnums=0)(params), provenance | {"fingerprint": verdict, "param_norm": sentence}


def _load(recipe: Recipe, key: jax.Array, watcher: Watcher) -> tuple[Params, dict[str, Any]]:
    source = str(recipe.weights.source)
    if is_remote(source):
        tree = fetch_tree(source, progress=_Percent("downloaded", watcher))
        path, files = tree.path, {name: {"bytes": size, "sha256": digest} for name, (size, digest) in tree.files.items()}
    else:
        path, files = Path(source), {}
    loaded = load_params(
        path,
        abstract_params(recipe),
        initialize=_initializer(recipe, key),
        allow_missing=lambda path: group_of(path) == "adapters",
        progress=_Percent("loaded", watcher),
    )
    digests = files or {str(directory): {"sha256": directory_sha256(directory)} for directory in loaded.sources}
    return loaded.params, {"source": source, "files": digests, "restored": len(loaded.restored), "initialized": loaded.initialized}


class _Percent:
    """Says how far a long transfer is, every ten percent."""

    def __init__(self, verb: str, watcher: Watcher) -> None:
        self._verb, self._watcher, self._said = verb, watcher, 0

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // max(total, 1)
        if tenths > self._said:
            self._said = tenths
            self._watcher.say(f"{self._verb} {format_bytes(done)} of {format_bytes(total)}")


def _initializer(recipe: Recipe, key: jax.Array) -> Callable[[str, jax.ShapeDtypeStruct], jax.Array]:
    """Initializes one parameter as upstream would; XLA drops the computation of all others."""

    def one(path: str, struct: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.jit(lambda key: initialize(recipe.model, key)[path].astype(struct.dtype), out_shardings=struct.sharding)(key)

    return one
