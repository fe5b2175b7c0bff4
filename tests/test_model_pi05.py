"""Tests laws of the model: irrelevant inputs do not change the result, and adapters do what LoRA says."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.model.pi05 import Observation, Params, bind, graph_of, initialize, time_embedding
from harness.model.remat import Remat
from harness.recipe.schema import CAMERAS, Recipe
from tests.support.tiny import LORA, random_batch, random_params, tiny


def observe(recipe: Recipe, seed: int = 0) -> Observation:
    batch = random_batch(recipe, batch=2, seed=seed)
    images = {
        camera: jnp.asarray(image / 127.5 - 1, jnp.float32) for camera, image in batch["images"].items()
    }
    masks = {camera: jnp.ones(2, bool) for camera in images}
    return Observation(images, masks, jnp.asarray(batch["tokens"]), jnp.asarray(batch["token_mask"]))


@functools.cache
def program(recipe: str, **changes: Any) -> Any:
    """The jitted loss of the model of a recipe, given as JSON."""
    graph = graph_of(Recipe.model_validate_json(recipe).model, **changes)
    return jax.jit(lambda params, *inputs: bind(graph, params).loss(*inputs))


def loss(recipe: Recipe, params: Params, observation: Observation, **changes: Any) -> np.ndarray:
    batch = random_batch(recipe, batch=2)
    noise = jax.random.normal(jax.random.key(1), batch["actions"].shape)
    run = program(recipe.model_dump_json(), **changes)
    return np.asarray(run(params, observation, batch["actions"], noise, jnp.array([0.3, 0.9])))


def test_a_masked_camera_changes_nothing_whether_computed_or_left_out() -> None:
    recipe = tiny()
    params, seen = random_params(recipe), observe(recipe)
    third = CAMERAS[2]
    computed = [
        seen._replace(
            images=seen.images | {third: jnp.full((2, 56, 56, 3), value)},
            image_masks=seen.image_masks | {third: jnp.zeros(2, bool)},
        )
        for value in (-1.0, 0.7)
    ]
    first, second, left_out = (loss(recipe, params, observation) for observation in (*computed, seen))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(left_out, first, rtol=1e-5)


def test_prompt_padding_changes_nothing() -> None:
    recipe = tiny()
    params, seen = random_params(recipe), observe(recipe)
    padded = seen._replace(
        tokens=jnp.pad(seen.tokens, ((0, 0), (0, 24)), constant_values=3),
        token_mask=jnp.pad(seen.token_mask, ((0, 0), (0, 24))),
    )
    np.testing.assert_allclose(loss(recipe, params, padded), loss(recipe, params, seen), rtol=1e-5)


def test_an_unmasked_camera_and_a_real_token_do_change_the_result() -> None:
    recipe = tiny()
    params, seen = random_params(recipe), observe(recipe)
    base = loss(recipe, params, seen)
    other_image = seen._replace(images=seen.images | {CAMERAS[1]: -seen.images[CAMERAS[1]]})
    other_token = seen._replace(tokens=seen.tokens.at[:, 0].add(1))
    assert not np.allclose(loss(recipe, params, other_image), base, rtol=1e-6)
    assert not np.allclose(loss(recipe, params, other_token), base, rtol=1e-6)


@pytest.mark.parametrize("remat", ["mlp", "names", "none"])
def test_a_level_of_rematerialization_changes_no_result(remat: Remat) -> None:
    recipe = tiny()
    params, seen = random_params(recipe), observe(recipe)
    np.testing.assert_allclose(
        loss(recipe, params, seen, remat=remat), loss(recipe, params, seen, remat="block"), rtol=1e-6
    )


def test_lora_with_zero_b_is_the_identity() -> None:
    base, adapted = tiny(), tiny(*LORA)
    params = random_params(adapted)
    zeroed = {
        path: np.zeros_like(value) if path.endswith("lora_b") else value for path, value in params.items()
    }
    without = {path: value for path, value in params.items() if "lora" not in path}
    np.testing.assert_allclose(
        loss(adapted, zeroed, observe(base)), loss(base, without, observe(base)), rtol=1e-6
    )


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_doubling_alpha_doubles_the_update_of_attention_and_of_feed_forward(part: str) -> None:
    """alpha scales A·B, so twice the alpha equals twice B; checked for each part alone."""
    once, twice = (
        tiny(*LORA),
        tiny(
            "train.trained=lora",
            *(f"model.{e}.lora={{rank: 4, alpha: 8.0}}" for e in ("paligemma", "action_expert")),
        ),
    )
    params = random_params(once)
    only = {
        path: np.zeros_like(value) if path.endswith("lora_b") and part not in path else value
        for path, value in params.items()
    }
    doubled = {path: 2 * value if path.endswith("lora_b") else value for path, value in only.items()}
    seen = observe(once)
    np.testing.assert_allclose(loss(twice, only, seen), loss(once, doubled, seen), rtol=1e-5)
    assert not np.allclose(loss(twice, only, seen), loss(once, only, seen), rtol=1e-6)


def test_bfloat16_compute_is_within_two_percent_of_float32() -> None:
    exact, rounded = tiny(), tiny("model.compute_dtype=bfloat16")
    params, seen = random_params(exact), observe(exact)
    np.testing.assert_allclose(loss(rounded, params, seen), loss(exact, params, seen), rtol=0.02)


def test_sampling_with_the_prefix_cache_is_the_velocity_of_the_whole_model() -> None:
    """One Euler step from t = 1 moves by minus the velocity there, which the loss without a cache squares;
    two steps halve and repeat.
    """
    recipe = tiny()
    params, seen, graph = random_params(recipe), observe(recipe), graph_of(recipe.model)
    sample = jax.jit(
        lambda noise, steps: bind(graph, params).sample_actions(seen, noise, steps=steps), static_argnums=1
    )
    velocity_loss = program(recipe.model_dump_json())
    noise = jax.random.normal(jax.random.key(2), (2, recipe.model.action_horizon, recipe.model.action_dim))
    one = sample(noise, 1) - noise
    # With actions = noise, x_t is the noise and the target of the velocity is 0.
    np.testing.assert_allclose(
        jnp.mean(jnp.square(one), axis=-1), velocity_loss(params, seen, noise, noise, jnp.ones(2)), rtol=1e-4
    )
    middle = noise + one / 2
    second = sample(noise, 2) - middle
    np.testing.assert_allclose(
        jnp.mean(jnp.square(2 * second), axis=-1),
        velocity_loss(params, seen, middle, middle, jnp.full(2, 0.5)),
        rtol=1e-3,
    )


def test_initialization_is_upstreams() -> None:
    recipe = tiny(*LORA)
    params = jax.jit(lambda key: initialize(recipe.model, key))(jax.random.key(0))
    assert float(jnp.abs(params["PaliGemma/img/head/kernel"]).max()) == 0
    assert float(jnp.abs(params["PaliGemma/llm/final_norm_1/Dense_0/kernel"]).max()) == 0
    for path, std in {
        "PaliGemma/llm/layers/attn/q_einsum/lora_b": 0.01,
        "PaliGemma/llm/layers/mlp_1/linear_lora_a": 0.01,
        "PaliGemma/llm/layers/attn/q_einsum/w": 64**-0.5,  # lecun: 1 / sqrt(fan in)
        "PaliGemma/llm/layers/attn/attn_vec_einsum/w": (8 * 16) ** -0.5,
        "PaliGemma/llm/layers/mlp/linear": 128**-0.5,
        "PaliGemma/llm/embedder/input_embedding": 0.01,
        "action_in_proj/kernel": 32**-0.5,
    }.items():
        assert float(params[path].std()) == pytest.approx(std, rel=0.1), path
    layers = params["PaliGemma/llm/layers/attn/q_einsum/w"]
    assert not np.allclose(layers[0], layers[1])


def test_time_embedding_periods() -> None:
    t = jnp.array([0.001, 1.0])
    got = np.asarray(time_embedding(t, 8))
    periods = np.array([4e-3, 4e-2, 4e-1, 4.0])
    want = np.concatenate(
        [
            np.sin(2 * np.pi * np.asarray(t)[:, None] / periods),
            np.cos(2 * np.pi * np.asarray(t)[:, None] / periods),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(got, want, atol=2e-4)
