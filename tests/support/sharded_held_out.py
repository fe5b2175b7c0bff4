"""Laws of the held-out pass over several devices: any plan measures what one device measures, in less memory
than its step.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from harness.artifacts import Levers
from harness.train import host
from harness.train.held_out_program import HeldOutProgram, compile_held_out, deployed
from harness.train.setup import keeper, setup_of
from harness.train.sharding import local_layout
from harness.train.start import surround
from tests.support.sharded import BATCH, FOUR, ONE, TOKENS, TWO_BY_TWO, compiled, hosted, learner, levers
from tests.support.tiny import LORA, random_batch, random_params


def program_of(recipe_overrides: tuple[str, ...], plan: Levers) -> HeldOutProgram:
    return compile_held_out(setup_of(learner(*recipe_overrides), local_layout(plan)), plan, BATCH)


@cache
def compiled_pass(
    recipe_overrides: tuple[str, ...], accumulation_steps: int, devices: int, fsdp: int
) -> HeldOutProgram:
    plan = levers(learner(*recipe_overrides), accumulation_steps, devices=devices, fsdp=fsdp)
    return program_of(recipe_overrides, plan)


def measured(program: HeldOutProgram) -> tuple[np.ndarray, np.ndarray]:
    """Losses [B] and sampled actions [B, A, E] of random rows with random parameters."""
    recipe, _, layout = program.setup
    expected = layout.structs(program.setup.shapes.params)
    keep = keeper(program.setup)
    params = {
        path: keep(path, jax.device_put(jnp.asarray(value, expected[path].dtype), expected[path].sharding))
        for path, value in random_params(recipe).items()
    }
    state = surround(params, program.setup)
    batch = random_batch(recipe, BATCH, TOKENS)
    stream = np.random.RandomState(0)
    noise = {
        name: stream.standard_normal(batch["actions"].shape).astype(np.float32) for name in ("noise", "start")
    }
    rows: dict[str, Any] = batch | noise | {"time": stream.uniform(0.1, 1, BATCH).astype(np.float32)}
    parts = []
    for start in range(0, BATCH, program.rows):
        some = jax.tree.map(lambda x, start=start: x[start : start + program.rows], rows)
        parts.append(program.run(*deployed(state), jax.device_put(some, layout.rows)))
    return tuple(np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))  # type: ignore[return-value]


def same_within(one: HeldOutProgram, other: HeldOutProgram) -> None:
    for a, b in zip(measured(one), measured(other), strict=True):
        assert np.isfinite(a).all()
        assert a.std() > 1e-3
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-6)


def law_a_held_out_pass_over_four_devices_measures_what_one_does() -> None:
    one = compiled_pass((), 1, **ONE)
    for mesh in (FOUR, TWO_BY_TWO):
        same_within(one, compiled_pass((), 2, **mesh))


def law_a_held_out_pass_reads_what_lies_in_host_memory() -> None:
    plan = levers(learner(), 2, **FOUR).model_copy(update={"host": ["ema", "moments", "masters"]})
    with mock.patch.object(host, "_PIECE", 2**11):
        streamed = program_of((), plan)
    same_within(compiled_pass((), 1, **ONE), streamed)
    assert streamed.device_bytes <= hosted()[0].bytes["device"]


def law_a_held_out_pass_of_adapters_over_quantized_weights_measures_what_one_device_does() -> None:
    overrides = (*LORA, "train.frozen=int8")
    same_within(compiled_pass(overrides, 1, **ONE), compiled_pass(overrides, 1, **FOUR))


def law_a_held_out_pass_needs_less_memory_than_the_step() -> None:
    for accumulation_steps, mesh in ((1, ONE), (2, FOUR)):
        held_out, step = (make((), accumulation_steps, **mesh) for make in (compiled_pass, compiled))
        assert held_out.device_bytes < step.bytes["device"]
