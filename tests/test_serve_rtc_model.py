"""Tests real-time chunking with the model itself: what stays bit for bit, what comes near, what is exact."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.model.pi05 import Observation, bind, graph_of
from harness.serve.rtc import Previous
from harness.train.step import observe
from tests.support.plain_rtc import guided_actions, sample_after, sample_continued, sample_guided
from tests.support.tiny import random_batch, random_params, tiny

RECIPE = tiny()
HORIZON = RECIPE.model.action_horizon
STEPS = 10


@functools.cache
def scene() -> tuple[dict[str, Any], Observation, np.ndarray]:
    """(parameters, an observation of two rows, noise)."""
    seen = observe(jax.tree.map(jnp.asarray, random_batch(RECIPE, batch=2)), None)
    noise = jax.random.normal(jax.random.key(3), (2, HORIZON, RECIPE.model.action_dim))
    return random_params(RECIPE), seen, np.asarray(noise)


def sampled(sample: Any, *args: Any, **options: Any) -> np.ndarray:
    params, seen, noise = scene()
    graph = graph_of(RECIPE.model, remat="none")
    return np.asarray(
        jax.jit(lambda params: sample(bind(graph, params), seen, noise, STEPS, *args, **options))(params)
    )


@functools.cache
def plain() -> np.ndarray:
    return sampled(lambda model, *given: model.sample_actions(*given))


@functools.cache
def other_chunk() -> np.ndarray:
    """A chunk of the same model from other noise."""
    params, seen, noise = scene()
    graph = graph_of(RECIPE.model, remat="none")
    return np.asarray(
        jax.jit(lambda params: bind(graph, params).sample_actions(seen, noise[::-1], STEPS))(params)
    )


@pytest.mark.parametrize("sample", [sample_guided, sample_continued])
def test_without_a_previous_chunk_actions_are_those_of_sampling_bit_for_bit(sample: Any) -> None:
    np.testing.assert_array_equal(sampled(sample, None), plain())


def test_a_previous_chunk_of_which_nothing_counts_changes_no_bit() -> None:
    nothing = Previous(other_chunk(), delay=0, execution_horizon=HORIZON)
    np.testing.assert_array_equal(sampled(sample_guided, nothing), plain())
    np.testing.assert_array_equal(sampled(sample_continued, nothing), plain())


def test_a_mask_of_zeros_in_a_compiled_program_is_sampling_within_rounding() -> None:
    """The mask is an input of the program that serves every delay; XLA rounds that program otherwise."""

    def guided(model: Any, seen: Observation, noise: Any, steps: int) -> jax.Array:
        velocity = model.velocity_of(seen, HORIZON)
        return guided_actions(
            lambda x, time: velocity(x, time, None), noise, steps, other_chunk(), np.zeros(HORIZON)
        )

    np.testing.assert_allclose(sampled(guided), plain(), atol=1e-6)


def test_guided_actions_approach_what_is_decided_and_leave_the_end_free() -> None:
    """Measured, mean distance of normalized actions to the previous chunk's: 1.32 free; 0.03 frozen; 0.07,
    0.24, 0.56 and more in the soft rows; unchanged in the last three.
    """
    before = Previous(other_chunk(), delay=2, execution_horizon=3)
    led = sampled(sample_guided, before)
    free, near = (np.abs(each - before.chunk).mean(axis=(0, 2)) for each in (plain(), led))
    assert (near[:2] < 0.03 * free[:2]).all()
    assert near[2] < 0.07 * free[2]
    assert near[3] < 0.25 * free[3]
    np.testing.assert_allclose(near[-3:], free[-3:], rtol=5e-3)


def test_a_larger_limit_of_the_guidance_comes_nearer() -> None:
    before = Previous(other_chunk(), delay=2, execution_horizon=3)
    five, ten = (
        np.abs(sampled(sample_guided, before, most=most) - before.chunk)[:, :2].mean() for most in (5, 10)
    )
    assert ten < 0.25 * five


def test_continued_actions_begin_with_the_given_ones_exactly_and_the_rest_reads_them() -> None:
    before = Previous(other_chunk(), delay=3, execution_horizon=3)
    found = sampled(sample_continued, before)
    np.testing.assert_array_equal(found[:, :3], before.chunk[:, :3])
    assert np.isfinite(found).all()
    # What comes after the given rows is another for other given rows, but not for other rows behind them.
    given, behind = before.chunk.copy(), before.chunk.copy()
    given[:, 0] += 1
    behind[:, 3:] += 1
    assert np.abs(sampled(sample_continued, before._replace(chunk=given)) - found)[:, 3:].max() > 1e-5
    np.testing.assert_array_equal(sampled(sample_continued, before._replace(chunk=behind)), found)


def test_the_form_is_the_one_that_the_recipe_trained() -> None:
    before = Previous(other_chunk(), delay=3, execution_horizon=3)
    guided, continued = (
        sampled(sample_after, before, most_delay=0),
        sampled(sample_after, before, most_delay=4),
    )
    np.testing.assert_array_equal(guided, sampled(sample_guided, before))
    np.testing.assert_array_equal(continued, sampled(sample_continued, before))
