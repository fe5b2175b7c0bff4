"""Compiles the program that serves, for a device that is here or not, and reads what it needs in bytes.

Nothing is allocated here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from harness.recipe.schema import Recipe
from harness.serve.program import Arrays, Call, act
from harness.serve.shapes import abstract_arrays, abstract_call, sizes_of
from harness.train.compiled import device_bytes


class Shape(NamedTuple):
    """A shape that is compiled: rows, and the length that prompts are padded to."""

    batch: int
    bucket: int


class Compiled(NamedTuple):
    """A compiled shape. `run(arrays, call)` gives the actions float32 [B, R, E].

    `bytes` are those of `harness.train.compiled.device_bytes`; the weights are among the arguments.
    """

    run: Any
    bytes: dict[str, int]

    @property
    def need(self) -> int:
        """Device bytes while this shape runs, with the weights."""
        return self.bytes["device"]


def compile_shape(
    recipe: Recipe,
    steps: int,
    shape: Shape,
    *,
    device: Any = None,
    options: dict[str, str] | None = None,
    platform: str | None = None,
) -> Compiled:
    """The program for one shape, compiled for the first device here, or for `device` of another topology.

    `options` are XLA's. `platform` is the other device's.
    """
    arrays, call = abstract_arrays(recipe, steps), abstract_call(recipe, *shape)
    if device is not None:
        where = jax.sharding.SingleDeviceSharding(device)
        arrays, call = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), (arrays, call)
        )
    sizes = sizes_of(recipe.model)

    def serve(arrays: Arrays, call: Call) -> jax.Array:
        return act(arrays, sizes, call)

    traced = jax.jit(serve).trace(arrays, call)
    lowered = traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
    done = lowered.compile(compiler_options=options)
    return Compiled(done, device_bytes(done.memory_analysis()))
