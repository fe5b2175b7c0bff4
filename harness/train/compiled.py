"""Compiles the training step, and reads from XLA's buffer assignment how much memory the step needs.

Nothing is allocated here.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from harness.artifacts import Levers
from harness.recipe.schema import Recipe
from harness.train.setup import Setup
from harness.train.step import make_step


class CompiledStep(NamedTuple):
    """The compiled step. `run(state, batch, key)` donates the state.

    `bytes` are those of one device: argument, output, alias, temp, device (the sum of the others, less
    alias).

    `setup` is the setup that the step was compiled for. It says where the state and the batch must lie.
    """

    run: Any
    bytes: dict[str, int]
    program_sha256: str
    setup: Setup


def compile_step(
    setup: Setup, levers: Levers, *, options: dict[str, str] | None = None, platform: str | None = None
) -> CompiledStep:
    """The compiled step of `setup` with `levers`, for the devices of its layout.

    These devices need not be on this machine. Device bytes are argument + output - alias + temp of XLA's
    memory analysis. `program_sha256` is that of the lowered program.
    Source: facts on compiling for a GPU that is not here; jax.stages.Compiled.memory_analysis.
    """
    lowered, program_sha256 = lower_step(setup, levers, platform)
    compiled = lowered.compile(compiler_options=options)
    sizes = device_bytes(compiled.memory_analysis())
    return CompiledStep(compiled, sizes, program_sha256, setup)


def lower_step(setup: Setup, levers: Levers, platform: str | None = None) -> tuple[Any, str]:
    """(the lowered step, as XLA receives it; its sha256)."""
    recipe, shapes, layout = setup
    step = make_step(
        recipe,
        accumulation_steps=levers.accumulation_steps,
        remat=levers.remat,
        attention=levers.attention,
        compute_copy=levers.compute_copy,
        layout=layout,
    )
    state = layout.structs(shapes.state)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.rows), abstract_batch(recipe, levers)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=layout.replicated)
    # The state's outputs are sharded like its inputs, so that every buffer is updated in place.
    out = (layout.results(shapes.state), layout.replicated)
    traced = jax.jit(step, donate_argnums=0, out_shardings=out).trace(state, batch, key)
    lowered = traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
    return lowered, hashlib.sha256(lowered.as_text().encode()).hexdigest()


def abstract_batch(recipe: Recipe, levers: Levers) -> dict[str, Any]:
    """Shapes and types of the batch that the loader delivers."""
    b, model = levers.microbatch * levers.accumulation_steps * levers.devices, recipe.model
    side, tokens = model.image_size, levers.prompt_tokens
    return {
        "images": {camera: jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8) for camera in levers.cameras},
        "tokens": jax.ShapeDtypeStruct((b, tokens), jnp.int32),
        "token_mask": jax.ShapeDtypeStruct((b, tokens), jnp.bool_),
        "actions": jax.ShapeDtypeStruct((b, model.action_horizon, model.action_dim), jnp.float32),
        **_of_mixture(recipe, levers, b),
    }


def _of_mixture(recipe: Recipe, levers: Levers, b: int) -> dict[str, Any]:
    """What a batch of a mixture has beside that of one dataset, as `mixed_batch` makes it."""
    if recipe.data.datasets is None:
        return {}
    found: dict[str, Any] = {"dataset": jax.ShapeDtypeStruct((b,), jnp.int32)}
    if recipe.data.some_lack_a_camera:
        found["image_masks"] = {camera: jax.ShapeDtypeStruct((b,), jnp.bool_) for camera in levers.cameras}
    return found


def device_bytes(analysis: Any) -> dict[str, int]:
    """argument, output, alias and temp of XLA's memory analysis, and their totals.

    The totals are `device` for device memory and `host` for pinned host memory.
    """

    def parts(prefix: str) -> dict[str, int]:
        return {
            name: int(getattr(analysis, f"{prefix}{name}_size_in_bytes"))
            for name in ("argument", "output", "alias", "temp")
        }

    def total(part: dict[str, int]) -> int:
        return part["argument"] + part["output"] - part["alias"] + part["temp"]

    return parts("") | {"device": total(parts("")), "host": total(parts("host_"))}
