"""Makes the state before the first step, from released weights or from random parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from harness.checkpoint.weights import directory_sha256, load_params
from harness.download.cache import WEIGHTS, fetch_tree, is_remote
from harness.model.pi05 import Params, initialize
from harness.model.quantize import Quantized
from harness.recipe.fingerprint import norm_verdict
from harness.recipe.parameters import group_of
from harness.recipe.schema import Recipe
from harness.run.peers import ALONE, Peers
from harness.run.watcher import Watcher
from harness.train.copies import with_copies
from harness.train.optimizer import optimizer
from harness.train.setup import Setup, keeper
from harness.train.state import TrainState, fresh_state
from harness.train.update import kernel_norm
from harness.units import format_bytes


def first_state(
    setup: Setup, key: jax.Array, watcher: Watcher, peers: Peers = ALONE
) -> tuple[TrainState, dict[str, Any]]:
    """(the state at step 0, the provenance of its parameters for the manifest).

    The state is created in its shards.
    Raises: HarnessError of the download and of the weights.
    """
    recipe = setup.recipe
    if recipe.weights.source is None:
        watcher.say("initializing random parameters")
        return random_state(setup, key, peers), {
            "source": "random",
            "seed": recipe.train.seed,
        }
    watcher.say(f"loading weights from {recipe.weights.source}")
    params, norm, provenance = _load(setup, key, watcher, peers)
    verdict, sentence = norm_verdict(recipe.model, norm)
    (watcher.warn if verdict == "differs" else watcher.say)(sentence)
    return surround(params, setup), provenance | {"fingerprint": verdict, "param_norm": sentence}


def random_state(setup: Setup, key: jax.Array, peers: Peers = ALONE) -> TrainState:
    """The state at step 0 around random parameters.

    The copies are made of the finished parameters. A program that made both could round them differently.
    """
    state = compiled_by_all(initializer(setup), peers, key)(key)
    return with_copies(state, setup.shapes.state, setup.layout)


def initializer(setup: Setup) -> Any:
    """The jitted function that maps a key to `random_state` without the copies."""
    recipe, shapes, layout = setup
    return jax.jit(
        lambda key: layout.put(fresh_state(recipe, key)),
        out_shardings=layout.results(shapes.state._replace(copies={})),
    )


def surround(params: Params, setup: Setup) -> TrainState:
    """The state at step 0 around parameters that lie on the devices in the form that the state keeps.

    The parameters become part of the state. What goes to host memory goes leaf by leaf, so that no part of
    the state is on the device twice. The copies come last, and never take as much as the parameters that have
    left the device by then.
    """
    shapes = setup.shapes.state
    shardings = setup.layout.of(shapes)
    ema = (
        None
        if shapes.ema is None
        else {path: _moved(jnp.copy(params[path]), shardings.ema[path]) for path in shapes.ema}
    )
    opt_state = optimizer_starter(setup)()
    trained = {path: _moved(params[path], shardings.trained[path]) for path in shapes.trained}
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
    frozen = {path: params[path] for path in shapes.frozen}
    return with_copies(TrainState(step, trained, frozen, opt_state, ema), shapes, setup.layout)


def optimizer_starter(setup: Setup) -> Any:
    """The jitted function without arguments that returns the optimizer's state at step 0.

    That state does not depend on the values of the parameters.
    """
    recipe, shapes, layout = setup

    def start() -> Any:
        zeros = {path: jnp.zeros(x.shape, x.dtype) for path, x in shapes.state.trained.items()}
        return layout.put({"opt_state": optimizer(recipe.train.optimizer, recipe.train.seed).init(zeros)})[
            "opt_state"
        ]

    return jax.jit(start, out_shardings=layout.results({"opt_state": shapes.state.opt_state})["opt_state"])


def _moved(x: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """`x` in the memory where it belongs. The old array is freed before the next one is moved."""
    if x.sharding.memory_kind == sharding.memory_kind:
        return x
    there = jax.device_put(x, sharding).block_until_ready()
    # JAX cannot donate an array to another kind of memory.
    x.delete()
    return there


def compiled_by_all(function: Any, peers: Peers, *args: Any) -> Any:
    """The jitted `function`, compiled for `args` before any process runs it.

    A collective waits for a peer that still compiles, but not for long.
    """
    if peers.count == 1:
        return function
    compiled = function.lower(*args).compile()
    peers.barrier()
    return compiled


def _load(
    setup: Setup, key: jax.Array, watcher: Watcher, peers: Peers
) -> tuple[Params, float, dict[str, Any]]:
    """(the parameters as the state keeps them, the norm of the kernels as read, the provenance)."""
    source = str(setup.recipe.weights.source)
    if is_remote(source):
        if peers.count > 1:
            # The first one fetches. The others find it in the cache, unless each has a cache of its own.
            peers.first(lambda: fetch_tree(source, named=WEIGHTS))
        tree = fetch_tree(source, progress=_Percent("downloaded", watcher), named=WEIGHTS)
        path, files = (
            tree.path,
            {name: {"bytes": size, "sha256": digest} for name, (size, digest) in tree.files.items()},
        )
    else:
        path, files = Path(source), {}
    keep, norm, quantized = keeper(setup), jax.jit(kernel_norm), []

    def note(path: str, array: jax.Array) -> Any:
        small = keep(path, array)
        if isinstance(small, Quantized):
            quantized.append(float(norm({path: array})))
        return small

    loaded = load_params(
        path,
        setup.layout.structs(setup.shapes.params),
        initialize=_initializer(setup.recipe, key),
        allow_missing=lambda path: group_of(path) == "adapters",
        keep=note,
        progress=_Percent("loaded", watcher),
    )
    digests = files or {
        str(directory): {"sha256": directory_sha256(directory)} for directory in loaded.sources
    }
    dense = {path: value for path, value in loaded.params.items() if not isinstance(value, Quantized)}
    param_norm = math.hypot(float(compiled_by_all(norm, peers, dense)(dense)), *quantized)
    return (
        loaded.params,
        param_norm,
        {
            "source": source,
            "files": digests,
            "restored": len(loaded.restored),
            "initialized": loaded.initialized,
        },
    )


class _Percent:
    """Reports the progress of a long transfer, every ten percent."""

    def __init__(self, verb: str, watcher: Watcher) -> None:
        self._verb, self._watcher, self._said = verb, watcher, 0

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // max(total, 1)
        if tenths > self._said:
            self._said = tenths
            self._watcher.say(f"{self._verb} {format_bytes(done)} of {format_bytes(total)}")


def _initializer(recipe: Recipe, key: jax.Array) -> Callable[[str, jax.ShapeDtypeStruct], jax.Array]:
    """Initializes one parameter as upstream does; XLA drops the computation of all others."""

    def one(path: str, struct: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.jit(
            lambda key: initialize(recipe.model, key)[path].astype(struct.dtype),
            out_shardings=struct.sharding,
        )(key)

    return one
