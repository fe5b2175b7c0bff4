"""Latency of the engine of `harness serve` on the device that is here: p50 and p95 of a call, a batch a row.

    python -m benchmarks.serve_latency [CHECKPOINT] [--recipe pi05_libero] [--random] [--batches 1,8]
        [--bucket 64] [--calls 50] [--before]

A call goes from arrays on the host to actions on the host. Compilation and the first call do not count.
`--random` takes random weights, so that no checkpoint is needed. `--before` also times `sample_actions` with
the same weights' types and inputs, which is what was served before. On a CPU: `--recipe smoke --random`.
The last line is JSON, with the device's name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def timed(call: Callable[[], object], calls: int) -> dict[str, float]:
    """p50, p95 and the fastest of so many calls, in ms."""
    call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds, (50, 95))
    return {name: round(1e3 * float(x), 3) for name, x in (("p50", p50), ("p95", p95), ("min", min(seconds)))}


def random_arrays(recipe: Any, steps: int) -> Any:
    """Random arrays of the program, array by array on the device."""
    import jax
    import jax.numpy as jnp

    from harness.serve.shapes import abstract_arrays

    leaves, tree = jax.tree.flatten(abstract_arrays(recipe, steps))
    make = jax.jit(
        lambda key, shape, dtype: (0.02 * jax.random.normal(key, shape)).astype(dtype), static_argnums=(1, 2)
    )
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [make(key, leaf.shape, jnp.dtype(leaf.dtype).name) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, made)


def time_before(recipe: Any, steps: int, rows: int, bucket: int, calls: int) -> dict[str, float]:
    """The same of `Pi05.sample_actions`, with random weights in the compute type."""
    import jax
    import jax.numpy as jnp

    from harness.model.pi05 import Observation, bind, graph_of, initialize
    from harness.serve.lengths import cameras_of

    model = recipe.model
    dtype = jnp.dtype(model.compute_dtype)
    params = jax.jit(lambda key: {p: x.astype(dtype) for p, x in initialize(model, key).items()})(
        jax.random.key(0)
    )
    side, cameras = model.image_size, cameras_of(recipe)
    observation = Observation(
        {camera: jnp.zeros((rows, side, side, 3)) for camera in cameras},
        {camera: jnp.ones(rows, bool) for camera in cameras},
        jnp.ones((rows, bucket), jnp.int32),
        jnp.ones((rows, bucket), bool),
    )
    noise = jnp.zeros((rows, model.action_horizon, model.action_dim))
    graph = graph_of(model, remat="none")
    sample = jax.jit(lambda p, o, n: bind(graph, p).sample_actions(o, n, steps))
    return timed(lambda: jax.block_until_ready(sample(params, observation, noise)), calls)


def engine_for(options: argparse.Namespace, recipe: Any, shapes: list[Any]) -> Any:
    from harness.checkpoint.locate import locate
    from harness.serve.compiled import compile_shape
    from harness.serve.engine import FastEngine
    from harness.serve.weights import load

    compiled = {}
    for shape in shapes:
        start = time.time()
        compiled[shape] = compile_shape(recipe, options.steps, shape)
        print(f"compiled {shape.batch} rows in {time.time() - start:.1f} s", flush=True)
    arrays = (
        random_arrays(recipe, options.steps)
        if options.random
        else load(locate(options.checkpoint).path, recipe, options.steps, base=options.base)
    )
    return FastEngine(recipe, options.steps, compiled, arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_latency", description="Latency of the engine on this device."
    )
    parser.add_argument("checkpoint", nargs="?", help="a run, a step, or its params")
    parser.add_argument("--recipe", help="default: the one that the checkpoint records")
    parser.add_argument("--base", help="where the base weights are now")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--bucket", type=int, default=64, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=10, help="Euler steps")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--before", action="store_true", help="sample_actions too")
    options = parser.parse_args()
    if options.random == bool(options.checkpoint) or (options.random and not options.recipe):
        parser.error("give a checkpoint, or --random with --recipe")
    from harness.checkpoint.locate import locate, recipe_of
    from harness.recipe.load import load_recipe
    from harness.serve.compiled import Shape
    from harness.serve.types import Inputs
    from harness.train import device

    name = device.start()
    recipe = (
        load_recipe(options.recipe, [])
        if options.random
        else recipe_of(locate(options.checkpoint), options.recipe)
    )
    shapes = [Shape(int(rows), options.bucket) for rows in options.batches.split(",")]
    engine = engine_for(options, recipe, shapes)
    found: dict[str, Any] = {"device": name, "recipe": recipe.name, "bucket": options.bucket, "ms": {}}
    side = recipe.model.image_size
    for rows, bucket in shapes:
        images = np.zeros((rows, side, side, 3), np.uint8)
        tokens = np.ones((rows, bucket), np.int32)
        inputs = Inputs(dict.fromkeys(engine.cameras, images), tokens, tokens > 0)
        noise = np.zeros((rows, engine.horizon, engine.action_dim), np.float32)
        found["ms"][str(rows)] = timed(lambda i=inputs, n=noise: engine.sample(i, n), options.calls)  # type: ignore[misc]
        if options.before:
            found["ms"][f"{rows} before"] = time_before(recipe, options.steps, rows, bucket, options.calls)
        print(rows, found["ms"], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
