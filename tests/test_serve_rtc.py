"""Tests laws of real-time chunking: the mask, the direction of time, the guidance, and what is left free."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.serve.rtc import (
    MOST_GUIDANCE,
    Previous,
    guidance_weight,
    guided_velocity,
    soft_mask,
)
from tests.support.plain_rtc import continued_actions, guided_actions

HORIZON, WIDTH = 8, 3


def test_the_mask_is_the_papers_at_its_ends() -> None:
    """Eight actions, two of them frozen, three new: c is 4/4, 3/4, 2/4, 1/4 behind the frozen ones."""
    mask = soft_mask(8, 2, 3)
    c = np.array([3, 2, 1]) / 4
    np.testing.assert_allclose(mask[2:5], c * (np.e**c - 1) / (np.e - 1), rtol=1e-6)
    assert mask[:2].tolist() == [1, 1]
    assert mask[5:].tolist() == [0, 0, 0]


@given(st.integers(1, 60), st.data())
def test_the_mask_falls_from_one_to_zero(horizon: int, data: st.DataObject) -> None:
    delay = data.draw(st.integers(0, horizon))
    execution_horizon = data.draw(st.integers(0, horizon - delay))
    mask = soft_mask(horizon, delay, execution_horizon)
    assert mask.shape == (horizon,)
    assert (mask[:delay] == 1).all()
    assert (mask[horizon - execution_horizon :] == 0).all()
    middle = mask[delay : horizon - execution_horizon]
    assert ((middle > 0) & (middle < 1)).all()
    assert (np.diff(mask[max(delay - 1, 0) :]) <= 0).all()


@pytest.mark.parametrize(("delay", "execution_horizon"), [(-1, 3), (6, 3), (0, 9), (0, -1)])
def test_a_mask_that_cannot_be_is_refused(delay: int, execution_horizon: int) -> None:
    with pytest.raises(ValueError, match="of 8 actions"):
        soft_mask(8, delay, execution_horizon)


def test_the_guidance_weight_is_clipped_where_it_would_be_infinite() -> None:
    weights = np.asarray(guidance_weight(jnp.array([1.0, 0.9, 0.5, 0.1])))
    assert weights[0] == MOST_GUIDANCE
    np.testing.assert_allclose(weights[2], 2.0, rtol=1e-6)
    np.testing.assert_allclose(guidance_weight(0.9, 100.0), (0.9**2 + 0.1**2) / (0.9 * 0.1), rtol=1e-5)
    # The papers' own form, at τ = 1 - t.
    for tau in (0.05, 0.3, 0.6, 0.95):
        spread = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        np.testing.assert_allclose(guidance_weight(1 - tau, 100.0), (1 - tau) / (tau * spread), rtol=1e-5)


class Gaussian(NamedTuple):
    """Actions that are normally distributed, whose flow has a closed form. The rows depend on each other.

    Shapes: mean [N], covariance [N, N] with N = H·D.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def drawn(cls, seed: int) -> Gaussian:
        rng = np.random.default_rng(seed)
        near = np.exp(-0.3 * np.abs(np.subtract.outer(np.arange(HORIZON), np.arange(HORIZON))))
        mixed = rng.standard_normal((WIDTH, WIDTH))
        return cls(
            rng.standard_normal(HORIZON * WIDTH), np.kron(near, mixed @ mixed.T / WIDTH + 0.1 * np.eye(WIDTH))
        )

    def gain(self, tau: float) -> np.ndarray:
        """d E[actions | A(τ)] / dA, [N, N]."""
        spread = tau**2 * self.covariance + (1 - tau) ** 2 * np.eye(len(self.mean))
        return tau * self.covariance @ np.linalg.inv(spread)

    def towards_actions(self, x: np.ndarray, tau: float) -> np.ndarray:
        """The papers' velocity actions - noise, of flat chunks [B, N] at τ < 1."""
        expected = self.mean + (x - tau * self.mean) @ self.gain(tau).T
        return (expected - x) / (1 - tau)


def by_the_paper(
    field: Gaussian, noise: np.ndarray, steps: int, target: np.ndarray, mask: np.ndarray, most: float
) -> np.ndarray:
    """The papers' sampler in their own direction of time, with the whole Jacobian; float64, numpy alone."""
    x, y = (each.reshape(len(each), -1).astype(np.float64) for each in (noise, target))
    weights = np.repeat(mask.astype(np.float64), WIDTH)
    for step in range(steps):
        tau = step / steps
        v = field.towards_actions(x, tau)
        estimate = x + (1 - tau) * v
        jacobian = field.gain(tau)  # of the estimate: x + (E - x)
        spread = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        weight = most if tau == 0 else min(most, (1 - tau) / (tau * spread))
        guided = v + weight * ((y - estimate) * weights) @ jacobian
        x = x + guided / steps
    return x.reshape(noise.shape)


def towards_noise(field: Gaussian) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same flow as openpi's models give it: noise - actions, from t = 1 to 0."""
    mean, covariance = jnp.asarray(field.mean, jnp.float32), jnp.asarray(field.covariance, jnp.float32)

    def velocity(x: jax.Array, time: jax.Array) -> jax.Array:
        t = time[0]
        flat = x.reshape(len(x), -1)
        spread = (1 - t) ** 2 * covariance + t**2 * jnp.eye(len(mean))
        expected = mean + (1 - t) * jnp.linalg.solve(spread, (flat - (1 - t) * mean).T).T @ covariance
        return ((flat - expected) / t).reshape(x.shape)

    return velocity


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(noise, target), [2, H, D] each."""
    noise, target = np.random.default_rng(seed).standard_normal((2, 2, HORIZON, WIDTH)).astype(np.float32)
    return noise, target


@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize("most", [5.0, 10.0])
def test_our_direction_of_time_gives_what_the_papers_gives(steps: int, most: float) -> None:
    field, (noise, target) = Gaussian.drawn(3), drawn(4)
    mask = soft_mask(HORIZON, 2, 3)
    ours = jax.jit(
        lambda noise, target: guided_actions(
            towards_noise(field), noise, steps, target, jnp.asarray(mask), most=most
        )
    )(noise, target)
    np.testing.assert_allclose(ours, by_the_paper(field, noise, steps, target, mask, most), atol=2e-4)


def test_without_guidance_the_two_directions_give_the_same_too() -> None:
    """So the agreement above is not owed to the guidance: with a mask of zeros it is plain sampling."""
    field, (noise, target) = Gaussian.drawn(5), drawn(6)
    nothing = np.zeros(HORIZON, np.float32)
    ours = guided_actions(towards_noise(field), jnp.asarray(noise), 10, jnp.asarray(target), nothing)
    theirs = by_the_paper(field, noise, 10, target, nothing, 5.0)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(theirs - by_the_paper(field, noise, 10, target, soft_mask(HORIZON, 2, 3), 5.0)).max() > 0.1


def test_the_product_with_the_transposed_jacobian_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(0.3 * rng.standard_normal((HORIZON * WIDTH, HORIZON * WIDTH)), jnp.float32)
    (x, target), mask, time = drawn(1), soft_mask(HORIZON, 3, 2), 0.6

    def velocity(x: jax.Array) -> jax.Array:
        return jnp.tanh(x.reshape(len(x), -1) @ kernel).reshape(x.shape)

    def distance(x: jax.Array) -> float:
        """½·Σ W·(Y - Â)², whose gradient is -Jᵀ·W·(Y - Â)."""
        estimate = x - time * velocity(x)
        return float(0.5 * (mask[:, None] * np.square(target - np.asarray(estimate, np.float64))).sum())

    guided = guided_velocity(velocity, jnp.asarray(x), time, jnp.asarray(target), mask)
    towards = (velocity(x) - guided) / guidance_weight(time)
    step = 1e-2
    for at in [(0, 0, 0), (0, 4, 1), (1, 2, 2), (1, 7, 0)]:
        moved = np.zeros_like(x)
        moved[at] = step
        difference = (distance(x + moved) - distance(x - moved)) / (2 * step)
        np.testing.assert_allclose(-towards[at], difference, rtol=2e-3, atol=2e-3)


def test_a_row_without_weight_is_not_guided_and_others_do_not_touch_it() -> None:
    field, (noise, target) = Gaussian.drawn(7), drawn(8)
    velocity = towards_noise(field)
    masks = np.stack([soft_mask(HORIZON, 2, 3), np.zeros(HORIZON, np.float32)])
    both = guided_actions(velocity, jnp.asarray(noise), 5, jnp.asarray(target), jnp.asarray(masks))
    free = guided_actions(velocity, jnp.asarray(noise), 5, jnp.asarray(target), jnp.zeros(HORIZON))
    led = guided_actions(velocity, jnp.asarray(noise), 5, jnp.asarray(target), jnp.asarray(masks[0]))
    np.testing.assert_allclose(both[1], free[1], atol=1e-6)
    np.testing.assert_allclose(both[0], led[0], atol=1e-6)
    assert np.abs(both[0] - free[0]).max() > 0.1


def test_the_frozen_actions_come_near_and_those_behind_follow() -> None:
    """Of actions that hang together the frozen ones also move the rest; the end keeps its own spread."""
    field, (noise, _) = Gaussian.drawn(9), drawn(10)
    target = np.broadcast_to(field.mean.reshape(HORIZON, WIDTH) + 1, noise.shape).astype(np.float32)
    velocity, mask = towards_noise(field), jnp.asarray(soft_mask(HORIZON, 3, 3))
    free = np.asarray(guided_actions(velocity, jnp.asarray(noise), 10, target, 0 * mask))
    led = np.asarray(guided_actions(velocity, jnp.asarray(noise), 10, target, mask))
    far, near = (np.abs(each - target)[:, :3].mean() for each in (free, led))
    assert near < 0.25 * far
    assert np.abs(led - free)[:, 5:].max() > 0.05  # no weight of their own


@settings(deadline=None, max_examples=20)
@given(st.integers(0, HORIZON), st.integers(1, 10))
def test_given_actions_are_returned_exactly_and_seen_at_every_step(delay: int, steps: int) -> None:
    noise, chunk = drawn(11)
    given = np.broadcast_to(np.arange(HORIZON) < delay, noise.shape[:2])

    def velocity(x: jax.Array, time: jax.Array, told: jax.Array) -> jax.Array:
        # What is not given moves by the sum of what is given: wrong if a given row was ever another.
        assert time.shape == (2,)
        return jnp.where(told[..., None], 1e6, 1.0) + (x * told[..., None]).sum(axis=1, keepdims=True)

    found = np.asarray(continued_actions(velocity, jnp.asarray(noise), steps, jnp.asarray(chunk), given))
    np.testing.assert_array_equal(found[:, :delay], chunk[:, :delay])
    moved = noise - 1 - chunk[:, :delay].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, delay:], moved[:, delay:], atol=1e-4)


def test_a_previous_chunk_knows_its_mask() -> None:
    previous = Previous(np.zeros((1, 8, 3), np.float32), 2, 3)
    np.testing.assert_array_equal(previous.mask, soft_mask(8, 2, 3))
