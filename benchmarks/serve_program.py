"""Kernels, bytes and operations of the program that serves, compiled for cards that are not here.

    python -m benchmarks.serve_program [--cards h200,h100,rtx_4090] [--tokens 24] [--batch 1] [--before]
        [--openpi] [--xla-attention]

A kernel is an instruction of the scheduled HLO that starts work on the device: a fusion, a custom call, a
copy, or any other that computes. A loop's body counts as often as the loop runs. Bytes moved are those of
each kernel's operands and results, slices counted as slices. `harness/plan/launches.py` counts.

`--before` also compiles `Pi05.sample_actions` with bfloat16 weights and float images, as served before: the
program of which an H200 needed 28.7 ms. The same counter reads both.

`--openpi` compares operations with the shape that openpi serves, three cameras and 200 tokens, compiled for
the same card and read by the same counter. `--xla-attention` leaves out our kernels of the action rows.

24 tokens are the shortest length that is compiled, in which the prompts of LIBERO's 130 tasks fit.

Nothing here is measured on a card. A program takes 2 to 8 minutes to compile on two cores.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from harness.errors import HarnessError

STEPS = 10
# Cameras and prompt tokens of openpi's `sample_actions` for π0.5. Source: openpi src/openpi/models/model.py
# IMAGE_KEYS and pi0_config.py `max_token_len`, commit 15a9616.
OPENPI_CAMERAS, OPENPI_TOKENS = 3, 200


def abstract_before(model: Any, cameras: tuple[str, ...], tokens: int, batch: int) -> tuple[Any, Any, Any]:
    """(parameters in bfloat16, observation, noise) of `Pi05.sample_actions`, as shapes and types."""
    import jax
    import jax.numpy as jnp

    from harness.model.pi05 import Observation
    from harness.recipe.parameters import parameter_shapes

    def struct(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    side = model.image_size
    params = {path: struct(*shape, dtype=jnp.bfloat16) for path, shape in parameter_shapes(model).items()}
    observation = Observation(
        {camera: struct(batch, side, side, 3) for camera in cameras},
        {camera: struct(batch, dtype=jnp.bool_) for camera in cameras},
        struct(batch, tokens, dtype=jnp.int32),
        struct(batch, tokens, dtype=jnp.bool_),
    )
    return params, observation, struct(batch, model.action_horizon, model.action_dim)


def before(model: Any) -> Any:
    """`Pi05.sample_actions` as a function of parameters, observation and noise."""
    from harness.model.pi05 import bind, graph_of

    graph = graph_of(model, remat="none")
    return lambda params, observation, noise: bind(graph, params).sample_actions(observation, noise, STEPS)


def compiled_before(recipe: Any, card: str, cameras: tuple[str, ...], tokens: int, batch: int) -> Any:
    """The scheduled HLO and the device bytes of `sample_actions`, compiled for `card`."""
    import jax
    from jax.experimental import topologies

    from harness.plan.cards import CARDS
    from harness.plan.compile import ABSENT_GPU_OPTIONS
    from harness.train.compiled import device_bytes

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=CARDS[card].target(), topology="1x1x1"
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        abstract_before(recipe.model, cameras, tokens, batch),
    )
    traced = jax.jit(before(recipe.model)).trace(*inputs)
    done = traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=ABSENT_GPU_OPTIONS)
    return done.as_text(), device_bytes(done.memory_analysis())["device"]


def row(name: str, work: list[tuple[int, int, int]], device_bytes: int, card: str, seconds: float) -> str:
    """One line of figures."""
    from harness.plan.cards import CARDS
    from harness.plan.cost import KERNEL_SECONDS
    from harness.plan.serving import work_seconds
    from harness.units import format_bytes

    kernels = sum(times for times, _, _ in work)
    moved = sum(times * each for times, each, _ in work) / 1e9
    predicted = work_seconds(work, CARDS[card]) + KERNEL_SECONDS * kernels
    return (
        f"{card:10} {name:16} {kernels:6,} kernels {moved:6.1f} GB {operations(work) / 1e12:6.3f} Top "
        f"{format_bytes(device_bytes):>9} compiled, {1e3 * predicted:5.1f} ms predicted ({seconds:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_program", description="The program that serves, counted."
    )
    parser.add_argument("--cards", default="h200,h100,rtx_4090", help="names of the table, with commas")
    parser.add_argument("--tokens", type=int, default=24, help="prompt tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows of a call")
    parser.add_argument("--before", action="store_true", help="sample_actions too, by the same counter")
    parser.add_argument("--openpi", action="store_true", help="operations beside those of openpi's shape")
    parser.add_argument("--xla-attention", action="store_true", help="without our kernels")
    parser.add_argument("--recipe", default="pi05_libero")
    options = parser.parse_args()
    from harness.plan.cards import find
    from harness.recipe.load import load_recipe
    from harness.train import device

    device.start()
    recipe = load_recipe(options.recipe, [])
    for name in options.cards.split(","):
        try:
            report(options, recipe, find(name))
        except HarnessError as error:
            raise SystemExit(str(error)) from error


def report(options: argparse.Namespace, recipe: Any, card: str) -> None:
    """Prints what is asked for of one card."""
    from harness.plan.cards import CARDS
    from harness.plan.serving import Question, answered
    from harness.recipe.schema import CAMERAS
    from harness.serve.lengths import cameras_of

    start = time.time()
    question = Question(
        recipe=recipe,
        batch=options.batch,
        prompt_tokens=options.tokens,
        target=CARDS[card].target(),
        own_kernels=not options.xla_attention,
    )
    answer = answered(question)
    print(row("served", answer.work, answer.bytes["device"], card, time.time() - start), flush=True)
    others = []
    if options.before:
        others.append(("sample_actions", cameras_of(recipe), options.tokens))
    if options.openpi:
        others.append(("openpi's shape", CAMERAS[:OPENPI_CAMERAS], OPENPI_TOKENS))
    for name, cameras, tokens in others:
        start = time.time()
        work, size = counted(*compiled_before(recipe, card, cameras, tokens, options.batch))
        print(row(name, work, size, card, time.time() - start), flush=True)
        share = operations(answer.work) / operations(work)
        print(f"{card:10} operations of what is served: {share:.3f} of {name}", flush=True)


def counted(text: str, size: int) -> tuple[list[tuple[int, int, int]], int]:
    """(how often, bytes and operations of each kernel; the device bytes)."""
    from harness.plan.launches import kernels_of

    return [(each.times, each.bytes, each.operations) for each in kernels_of(text)], size


def operations(work: list[tuple[int, int, int]]) -> int:
    """Operations of a call."""
    return sum(times * each for times, _, each in work)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
