"""Tests augmentation: equal to augmax 0.4.1 key for key, and the moments of its draws."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.train import augment as module
from harness.train.augment import jitter, warp

# As the step does it: one program, not one for each operation.
augment = jax.jit(module.augment)

# Made by augmax 0.4.1 itself: Chain(RandomCrop(22, 22), Resize(24, 24), Rotate((-5, 5)), ColorJitter(0.3,
# 0.4, 0.5)) on four images of noise, the wrist camera with the ColorJitter alone; keys
# jax.random.split(jax.random.key(7), 4).
GOLDEN = np.load(Path(__file__).parent / "golden" / "augmax_041.npz")


@pytest.mark.parametrize("camera", ["base_0_rgb", "left_wrist_0_rgb"])
def test_equals_augmax_for_the_same_keys(camera: str) -> None:
    keys = jax.random.split(jax.random.key(int(GOLDEN["seed"])), 4)
    got = augment(keys, {camera: jnp.asarray(GOLDEN["images"])})[camera]
    np.testing.assert_allclose(got, GOLDEN[camera], atol=2e-5)


def test_wrist_cameras_are_not_warped() -> None:
    """Color jitter acts pixel by pixel: swapping two pixels before or after it is the same."""
    image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3), minval=-1)
    keys = jax.random.split(jax.random.key(1), 1)
    np.testing.assert_allclose(
        augment(keys, {"left_wrist_0_rgb": image[:, ::-1]})["left_wrist_0_rgb"],
        augment(keys, {"left_wrist_0_rgb": image})["left_wrist_0_rgb"][:, ::-1],
        atol=1e-6,
    )
    assert not np.allclose(
        augment(keys, {"base_0_rgb": image[:, ::-1]})["base_0_rgb"],
        augment(keys, {"base_0_rgb": image})["base_0_rgb"][:, ::-1],
        atol=1e-3,
    )


def test_moments_of_the_color_jitter() -> None:
    """Half of the images change; a gray value v moves by the mean that uniform brightness and contrast give
    it.
    """
    v, n = 0.5, 4000
    image = jnp.full((1, 1, 3), v)
    out = np.asarray(
        jax.jit(jax.vmap(lambda key: jitter(key, image)))(jax.random.split(jax.random.key(3), n))
    )[:, 0, 0, 0]
    assert (out != v).mean() == pytest.approx(0.5, abs=0.03)
    rng = np.random.default_rng(0)
    amount = rng.uniform(-0.3, 0.3, 100_000)
    bright = np.where(amount < 0, v * (1 + amount), v * (1 - amount) + amount)
    s = np.tan((rng.uniform(-0.4, 0.4, 100_000) + 1) * math.pi / 4)
    knee = s / (2 * (1 + s))
    want = np.where(
        bright < knee,
        bright / s,
        np.where(bright > 1 - knee, bright / s + 1 - 1 / s, s * (bright - 0.5) + 0.5),
    )
    changed = out[out != v]
    assert changed.mean() == pytest.approx(want.mean(), abs=0.01)
    assert changed.std() == pytest.approx(want.std(), rel=0.05)


def test_moments_of_the_warp() -> None:
    """A ramp image tells where pixels come from: centered on average, spread by shift and rotation."""
    side, n = 40, 2000
    ramp = (
        jnp.broadcast_to(jnp.arange(side, dtype=jnp.float32)[None, :, None], (side, side, 3)) + 100
    )  # far from the zeros outside
    out = jax.jit(jax.vmap(lambda key: warp(key, ramp)))(jax.random.split(jax.random.key(4), n))
    center = (
        np.asarray(out[:, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1, 0]).mean((1, 2)) - 100
    )
    slack = (side - int(side * 0.95)) / 2
    assert center.mean() == pytest.approx((side - 1) / 2, abs=0.05)
    assert center.std() == pytest.approx(slack / math.sqrt(3), rel=0.05)  # uniform in ±slack
