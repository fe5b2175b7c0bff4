"""What the laws of a run over several devices have in common: recipes, layouts, steps and checks."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from harness.artifacts import Levers
from harness.recipe.schema import Recipe
from harness.train import host
from harness.train.compiled import CompiledStep, compile_step
from harness.train.setup import setup_of
from harness.train.sharding import SMALLEST, Layout, local_layout
from harness.train.start import surround
from harness.train.state import TrainState
from tests.support.tiny import random_batch, random_params, tiny

ONE, FOUR, TWO_BY_TWO = {"devices": 1, "fsdp": 1}, {"devices": 4, "fsdp": 4}, {"devices": 4, "fsdp": 2}
# The sample dataset's prompts are padded to so many tokens: the loop compiles the same programs as the laws
# do.
BATCH, TOKENS = 8, 32
LEARNS = [
    "train.global_batch=8",
    "train.optimizer.eps=1.0e-4",
    "train.optimizer.schedule={warmup_steps: 1, peak: 1.0e-3, decay_steps: 10, end: 0.0}",
]


class Listener:
    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def phase(self, name: str) -> None: ...

    def step(self, line: Any, steps: int) -> None: ...


def levers(recipe: Recipe, accumulation_steps: int = 1, **mesh: int) -> Levers:
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    microbatch = BATCH // (mesh["devices"] * accumulation_steps)
    return Levers(
        platform="cpu",
        microbatch=microbatch,
        accumulation_steps=accumulation_steps,
        prompt_tokens=TOKENS,
        cameras=cameras,
        **mesh,
    )


def layout(devices: int, fsdp: int) -> Layout:
    return Layout(jax.local_devices()[:devices], fsdp)


@cache
def learner(*overrides: str) -> Recipe:
    return tiny("data.augment=true", *LEARNS, *overrides)


@cache
def compiled(
    recipe_overrides: tuple[str, ...], accumulation_steps: int, devices: int, fsdp: int
) -> CompiledStep:
    recipe = learner(*recipe_overrides)
    return here(recipe, levers(recipe, accumulation_steps, devices=devices, fsdp=fsdp))


def here(recipe: Recipe, plan: Levers) -> CompiledStep:
    """The step on this process's own devices."""
    return compile_step(setup_of(recipe, local_layout(plan)), plan)


@cache
def three_steps(
    recipe_overrides: tuple[str, ...], accumulation_steps: int, devices: int, fsdp: int
) -> tuple[TrainState, list[dict[str, float]]]:
    return steps_of(
        learner(*recipe_overrides), compiled(recipe_overrides, accumulation_steps, devices, fsdp), 3
    )


def steps_of(recipe: Recipe, step: CompiledStep, count: int) -> tuple[TrainState, list[dict[str, float]]]:
    layout = step.setup.layout
    expected = layout.structs(step.setup.shapes.params)
    params = {
        path: jax.device_put(jnp.asarray(value, expected[path].dtype), expected[path].sharding)
        for path, value in random_params(recipe).items()
    }
    state, key = surround(params, step.setup), jax.device_put(jax.random.key(5), layout.replicated)
    lines = []
    for i in range(count):
        state, metrics = step.run(
            state, jax.device_put(random_batch(recipe, BATCH, TOKENS, seed=i), layout.rows), key
        )
        lines.append({name: float(value) for name, value in metrics.items()})
    return state, lines


def assert_alike(
    one: tuple[TrainState, list[dict[str, float]]], many: tuple[TrainState, list[dict[str, float]]]
) -> None:
    """Metrics and trained parameters within 1e-6, relative to the metric and to the parameter's largest
    entry.
    """
    assert len({line["loss"] for line in one[1]}) == 3
    for a, b in zip(one[1], many[1], strict=True):
        for name, value in a.items():
            assert abs(b[name] / value - 1) <= 1e-6, (name, value, b[name])
    for path, value in one[0].trained.items():
        a, b = np.asarray(value), np.asarray(many[0].trained[path])
        worst = np.abs(a - b).max() / np.abs(a).max()
        assert worst <= 1e-6, (path, float(worst))


@cache
def hosted() -> tuple[CompiledStep, TrainState, list[dict[str, float]]]:
    """The step over four shards with everything in host memory, streamed in many pieces as the real leaves
    are, and where three of it lead.
    """
    plan = levers(learner(), 2, **FOUR).model_copy(update={"host": ["ema", "moments", "masters"]})
    with mock.patch.object(host, "_PIECE", 2**11):
        step = here(learner(), plan)
    return step, *steps_of(learner(), step, 3)


def check_shards(tree: Any, fsdp: int) -> None:
    """Every leaf lies in shards that are as large as the rule says; the rule is written here once more, from
    its sentence.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    cut = 0
    for keys, x in leaves:
        path = jax.tree_util.keystr(keys)
        axes = list(x.shape)[1 if "llm/layers/" in path or "encoderblock/" in path else 0 :]
        is_cut = math.prod(axes) >= SMALLEST and any(n % fsdp == 0 for n in axes)
        cut += is_cut
        assert len(x.addressable_shards) == 4
        for shard in x.addressable_shards:
            assert shard.data.size == x.size // (fsdp if is_cut else 1), (path, x.shape, shard.data.shape)
            if len(axes) < x.ndim:
                assert shard.data.shape[0] == x.shape[0], (path, "the layer axis is cut")
    assert cut > 5


def collectives(text: str) -> list[tuple[str, str, str]]:
    """(type, dimensions, operation) of every array that a compiled program sends from device to device."""
    found = []
    for result, name in re.findall(
        r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\(", text
    ):
        found += [(kind, dims, name) for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    return found
