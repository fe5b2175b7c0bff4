"""The training step, compiled, and what XLA's own buffer assignment says it needs. Nothing is allocated here."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from harness.artifacts import Levers
from harness.recipe import Recipe
from harness.train.state import abstract_state
from harness.train.step import make_step


class CompiledStep(NamedTuple):
    """`run(state, batch, key)` donates the state. `bytes`: argument, output, alias, temp, device (their sum, less alias)."""

    run: Any
    bytes: dict[str, int]
    flops: float | None
    fingerprint: str


def compile_step(recipe: Recipe, levers: Levers, *, sharding: Any = None, options: dict[str, str] | None = None, platform: str | None = None) -> CompiledStep:
    """The step of `recipe` carried out with `levers`, for the default device, or for `sharding`'s device of a topology.

    Device bytes are argument + output - alias + temp of XLA's memory analysis. The fingerprint is a hash of the lowered program.
    Source: facts on compiling for a GPU that is not here; jax.stages.Compiled.memory_analysis.
    """
    step = make_step(recipe, accumulation_steps=levers.accumulation_steps, remat=levers.remat == "block")
    arguments = (abstract_state(recipe), abstract_batch(recipe, levers), jax.eval_shape(lambda: jax.random.key(0)))
    if sharding is not None:
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    traced = jax.jit(step, donate_argnums=0, out_shardings=sharding).trace(*arguments)
    lowered = traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
    fingerprint = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    compiled = lowered.compile(compiler_options=options)
    return CompiledStep(compiled, device_bytes(compiled.memory_analysis()), _flops(compiled), fingerprint)


def abstract_batch(recipe: Recipe, levers: Levers) -> dict[str, Any]:
    """Shapes and types of the batch that the loader hands over."""
    b, model = levers.microbatch * levers.accumulation_steps * levers.devices, recipe.model
    side, tokens = model.image_size, levers.prompt_tokens
    return {
        "images": {camera: jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8) for camera in levers.cameras},
        "tokens": jax.ShapeDtypeStruct((b, tokens), jnp.int32),
        "token_mask": jax.ShapeDtypeStruct((b, tokens), jnp.bool_),
        "actions": jax.ShapeDtypeStruct((b, model.action_horizon, model.action_dim), jnp.float32),
    }


def device_bytes(analysis: Any) -> dict[str, int]:
    """argument, output, alias and temp of XLA's memory analysis, and what the device must hold: `device`."""
    parts = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in ("argument", "output", "alias", "temp")}
    return parts | {"device": parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]}


def _flops(compiled: Any) -> float | None:
    costs = compiled.cost_analysis() or {}
    return float(costs["flops"]) if "flops" in costs else None
