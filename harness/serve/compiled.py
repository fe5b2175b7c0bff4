"""Compiles the program that serves, for a device that is here or not, and reads what it needs in bytes.

Nothing is allocated here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from harness.recipe.schema import Recipe
from harness.serve.lengths import Kernels, kernels_for
from harness.serve.program import Arrays, Call, act
from harness.serve.rtc import Form
from harness.serve.rtc_program import After, act_continued, act_guided
from harness.serve.shapes import abstract_after, abstract_arrays, abstract_call, abstract_clean, sizes_of
from harness.train.compiled import device_bytes


class Shape(NamedTuple):
    """A shape that is compiled: rows, and the length that prompts are padded to.

    `rtc` is the form of the second program, whose actions go on from a previous chunk.
    """

    batch: int
    bucket: int
    rtc: Form | None = None


class Compiled(NamedTuple):
    """A compiled shape. `run(arrays, call)` gives the actions float32 [B, R, E].

    Of the second program it is `run(arrays, call, after)`, and where actions are continued `run(arrays, call,
    after, clean)`.
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
    kernels: Kernels | None = None,
) -> Compiled:
    """The program for one shape, compiled for the first device here, or for `device` of another topology.

    `options` are XLA's. `platform` is the other device's. `kernels` are those that serve the model on the
    platform, unless they are given. The guided form is differentiated, which the kernels are not.
    """
    given: tuple[Any, ...] = (
        abstract_arrays(recipe, steps),
        abstract_call(recipe, shape.batch, shape.bucket),
    )
    if shape.rtc is not None:
        given += (abstract_after(recipe, shape.batch),)
    if shape.rtc == "continued":
        given += (abstract_clean(recipe),)
    if device is not None:
        where = jax.sharding.SingleDeviceSharding(device)
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), given)
    if kernels is None:
        kernels = kernels_for(recipe.model, platform or here())
    sizes = sizes_of(recipe.model, "none" if shape.rtc == "guided" else kernels)

    def serve(arrays: Arrays, call: Call) -> jax.Array:
        return act(arrays, sizes, call)

    def guided(arrays: Arrays, call: Call, after: After) -> jax.Array:
        return act_guided(arrays, sizes, call, after)

    def continued(arrays: Arrays, call: Call, after: After, clean: jax.Array) -> jax.Array:
        return act_continued(arrays, clean, sizes, call, after)

    programs: dict[Form | None, Any] = {None: serve, "guided": guided, "continued": continued}
    traced = jax.jit(programs[shape.rtc]).trace(*given)
    lowered = traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
    done = lowered.compile(compiler_options=options)
    return Compiled(done, device_bytes(done.memory_analysis()))


def here() -> str:
    """The platform of JAX's default device, as recipes and plans name it."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"
