"""The latency of one action chunk, by the program of `harness serve` with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from harness.artifacts import Latency
from harness.calibrate.stages import Work
from harness.plan.candidates import changed
from harness.recipe.load import load_recipe
from harness.recipe.sampling import STEPS
from harness.serve.lengths import buckets_of, cameras_of

_CALLS = 20


def measure_sampling(work: Work, say: Callable[[str], None]) -> list[Latency]:
    """Seconds from the inputs on the device to its actions, for one row and the shortest prompts."""
    import jax

    from harness.serve.compiled import Shape, compile_shape
    from harness.serve.shapes import abstract_arrays, abstract_call

    recipe = changed(load_recipe(work.recipe), work.changes)
    shape = Shape(1, buckets_of(recipe.model)[0])
    say("compiling the program that serves")
    begun = time.perf_counter()
    done = compile_shape(recipe, STEPS, shape)
    compiled_s = time.perf_counter() - begun
    say("making its weights")
    arrays = _random(abstract_arrays(recipe, STEPS))
    call = _random(abstract_call(recipe, shape.batch, shape.bucket))
    say("sampling")
    jax.block_until_ready(done.run(arrays, call))
    times = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        jax.block_until_ready(done.run(arrays, call))
        times.append(time.perf_counter() - begun)
    return [
        Latency(
            recipe=work.recipe,
            batch=shape.batch,
            cameras=len(cameras_of(recipe)),
            prompt_tokens=shape.bucket,
            sampling_steps=STEPS,
            median_s=median(times),
            least_s=min(times),
            most_s=max(times),
            compile_s=compiled_s,
        )
    ]


def _random(tree: Any) -> Any:
    """Arrays of these shapes: small random numbers, and true where a mask stands.

    Zeros would draw less power than real weights do.
    """
    import jax
    import jax.numpy as jnp

    makers: dict[Any, Any] = {}

    def one(number: int, x: Any) -> Any:
        known = (x.shape, str(x.dtype))
        if known not in makers:
            if jnp.issubdtype(x.dtype, jnp.floating):
                make = lambda key, x=x: 0.02 * jax.random.normal(key, x.shape, x.dtype)  # noqa: E731
            elif x.dtype == bool:
                make = lambda _, x=x: jnp.ones(x.shape, bool)  # noqa: E731
            else:
                make = lambda key, x=x: jax.random.randint(key, x.shape, 0, 200).astype(x.dtype)  # noqa: E731
            makers[known] = jax.jit(make)
        return makers[known](jax.random.key(number))

    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, [one(number, x) for number, x in enumerate(leaves)])
