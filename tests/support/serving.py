"""The program that serves beside `Pi05.sample_actions`, on tiny checkpoints and random inputs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from harness.checkpoint.weights import load_params
from harness.model.pi05 import bind, graph_of
from harness.recipe.schema import Recipe
from harness.serve.compiled import Shape, compile_shape
from harness.serve.engine import FastEngine
from harness.serve.rtc import Previous, form_of
from harness.serve.types import Inputs
from harness.serve.weights import clean_modulations, load
from harness.train.setup import keeper, setup_of
from harness.train.sharding import Layout
from harness.train.step import observe
from tests.support.plain_rtc import sample_after
from tests.support.tiny import random_batch


def engine_of(
    recipe: Recipe, step: Path, steps: int, *shapes: tuple[int, int], rtc: bool = False, plain: bool = True
) -> FastEngine:
    """The engine of the checkpoint at `step`, for these (rows, prompt length).

    With `rtc` it has the programs that go on from a previous chunk; without `plain` it has these alone.
    """
    form = form_of(recipe.train.most_delay)
    forms = ([None] if plain else []) + ([form] if rtc else [])
    wanted = [Shape(*shape, each) for shape in shapes for each in forms]
    compiled = {shape: compile_shape(recipe, steps, shape) for shape in wanted}
    clean = clean_modulations(step, recipe) if rtc and form == "continued" else None
    return FastEngine(recipe, steps, compiled, load(step, recipe, steps), clean)


def inputs_of(recipe: Recipe, rows: int, tokens: int, seed: int = 0) -> tuple[Inputs, np.ndarray]:
    """(inputs of noise, as clients would send them; the noise of their chunks)."""
    batch = random_batch(recipe, rows, tokens, seed)
    shape = (rows, recipe.model.action_horizon, recipe.model.action_dim)
    noise = np.random.default_rng(seed + 1).standard_normal(shape).astype(np.float32)
    return Inputs(batch["images"], batch["tokens"], batch["token_mask"]), noise


def sampled(recipe: Recipe, step: Path, steps: int, inputs: Inputs, noise: np.ndarray) -> np.ndarray:
    """What `Pi05.sample_actions` gives with the checkpoint's parameters, which `harness predict` computes."""
    return np.asarray(_sampler(recipe, steps)(_params(recipe, step), inputs._asdict(), noise))


def sampled_after(
    recipe: Recipe, step: Path, steps: int, inputs: Inputs, noise: np.ndarray, previous: Previous
) -> np.ndarray:
    """What `Pi05` gives after a previous chunk, with the checkpoint's parameters."""
    graph = graph_of(recipe.model, remat="none")
    seen, most = inputs._asdict(), recipe.train.most_delay

    def sample(params: dict[str, jax.Array]) -> jax.Array:
        model = bind(graph, params)
        return sample_after(model, observe(seen, None), noise, steps, previous, most_delay=most)

    return np.asarray(jax.jit(sample)(_params(recipe, step)))


def _params(recipe: Recipe, step: Path) -> Any:
    setup = setup_of(recipe, Layout(jax.local_devices()[:1]))
    return load_params(step, setup.shapes.params, keep=keeper(setup)).params


@functools.cache
def _sampler_of(dumped: str, steps: int) -> Any:
    graph = graph_of(Recipe.model_validate_json(dumped).model, remat="none")

    def sample(params: dict[str, jax.Array], inputs: dict[str, Any], noise: np.ndarray) -> jax.Array:
        return bind(graph, params).sample_actions(observe(inputs, None), noise, steps)

    return jax.jit(sample)


def _sampler(recipe: Recipe, steps: int) -> Any:
    return _sampler_of(recipe.model_dump_json(), steps)
