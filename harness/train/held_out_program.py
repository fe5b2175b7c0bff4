"""The program of a held-out pass: loss and sampled actions of a few rows, without augmentation.

It is a program of its own beside the training step, whose program stays as it is. It reads the parameters to
deploy where the state has them, and changes none. Of parameters in host memory it reads the state's copies;
of an average there it makes copies for itself. It has no gradients, so beside the state it needs less than
the step.

Axes: M rows of all devices together, A action horizon, E action_dim, T prompt tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harness.artifacts import Levers
from harness.data.held_out_rows import SAMPLING_STEPS
from harness.model.pi05 import Params, bind, graph_of
from harness.recipe.parameters import EMBEDDING, is_cast_before_use
from harness.train.compiled import abstract_batch, device_bytes
from harness.train.host import PINNED, fetch, look_up, on_host, to_device
from harness.train.setup import Setup
from harness.train.sharding import Layout
from harness.train.state import TrainState
from harness.train.step import observe


class HeldOutProgram(NamedTuple):
    """The compiled pass: run(parameters to deploy, frozen, inputs) → (losses [M], sampled actions [M, A, E]).

    `rows` is M. `device_bytes` of one device holds the whole state, the program's own memory and its rows.
    `own_bytes` is what of it is not the state.
    """

    run: Any
    setup: Setup
    rows: int
    device_bytes: int
    own_bytes: int


def compile_held_out(
    setup: Setup,
    levers: Levers,
    rows: int,
    *,
    options: dict[str, str] | None = None,
    platform: str | None = None,
) -> HeldOutProgram:
    """The program for at most `rows` rows at a time, and never more a device than the step's microbatch.

    Nothing is allocated. The devices need not be on this machine.
    """
    recipe, shapes, layout = setup
    each = max(1, min(levers.microbatch, -(-rows // layout.devices)))
    one = levers.model_copy(update={"microbatch": each, "accumulation_steps": 1})
    inputs = abstract_batch(recipe, one)
    shape, dtype = inputs["actions"].shape, inputs["actions"].dtype
    inputs |= {name: jax.ShapeDtypeStruct(shape, dtype) for name in ("noise", "start")}
    inputs["time"] = jax.ShapeDtypeStruct(shape[:1], dtype)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.rows), inputs)
    state = layout.structs(shapes.state)
    traced = jax.jit(_make(setup, levers)).trace(*deployed(state), inputs)
    lowered = traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
    compiled = lowered.compile(compiler_options=options)
    found = device_bytes(compiled.memory_analysis())
    read = _bytes(deployed(state))
    rest = _bytes(state) - read
    return HeldOutProgram(compiled, setup, shape[0], found["device"] + rest, found["device"] - read)


def deployed(state: TrainState) -> tuple[Params, Params]:
    """(the average if there is one, else the trained parameters, or their copies; the frozen ones)."""
    return (state.trained | state.copies if state.ema is None else state.ema), state.frozen


def _make(setup: Setup, levers: Levers) -> Any:
    recipe, _, layout = setup
    graph = graph_of(recipe.model, remat="none", attention=levers.attention, fetch=layout.fetch)

    def run(params: Params, frozen: Params, inputs: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        given, tokens = _readable(
            jnp.dtype(recipe.model.compute_dtype), params | frozen, inputs["tokens"], layout
        )
        observation = observe(inputs | {"tokens": tokens}, None)
        model = bind(graph, layout.fetch_outside_layers(given))
        losses = model.loss(observation, inputs["actions"], inputs["noise"], inputs["time"]).mean(axis=-1)
        return losses, model.sample_actions(observation, inputs["start"], SAMPLING_STEPS)

    return run


def _readable(dtype: Any, params: Params, tokens: jax.Array, layout: Layout) -> tuple[Params, jax.Array]:
    """(the parameters on the device, tokens that count in the embedding table among them).

    Of an embedding table in host memory only the rows of the tokens are there, one row a token.
    """
    given = {}
    for path, x in params.items():
        hosted = isinstance(x, jax.Array) and on_host(x)
        if hosted and path == EMBEDDING:
            rows = layout.constrain_rows(look_up(x, tokens))  # [M, T, D]
            given[path] = rows.reshape(-1, rows.shape[-1])
            tokens = jnp.arange(tokens.size).reshape(tokens.shape)
        elif hosted and is_cast_before_use(path):
            given[path] = fetch(x, dtype, layout.cuttable(path, x.shape))
        else:
            given[path] = to_device(x) if hosted else x
    return given, tokens


def _bytes(tree: Any) -> int:
    """Device bytes of the abstract arrays of `tree` on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != PINNED
    )
