"""Augments camera images for training, on the device, as the published recipe does.

The result agrees in distribution, and key for key.

Upstream asks augmax 0.4.1 for: crop 95 %, resize back, rotate ±5° (not on wrist cameras), then
ColorJitter(brightness 0.3, contrast 0.4, saturation 0.5). What augmax really computes was read from its
source and is reproduced here:
- The three geometric steps are one bilinear warp with zeros outside.
- The jitter is applied to half of the images (its default p = 0.5).
- Brightness and contrast act on HSV's value. The hue moves by up to ±0.1 (its default, in turns).
- The saturation does not change, because augmax drops the result of that adjustment.
Sources: openpi src/openpi/models/model.py `preprocess_observation`, commit 15a9616; augmax 0.4.1
geometric.py, colorspace.py.

Axes: B batch, S image side.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_CROP = 0.95
_ROTATE = math.radians(5.0)
_BRIGHTNESS, _CONTRAST, _HUE = 0.3, 0.4, 0.1
_JITTER_PROBABILITY = 0.5


def augment(keys: jax.Array, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Augmented images, [-1, 1] → [-1, 1].

    Each sample has one key, shared by its cameras as upstream shares it.
    Shapes: keys [B]; images [B, S, S, 3].
    """
    return {
        camera: (
            jax.vmap(_wrist_camera if "wrist" in camera else _base_camera)(keys, image / 2.0 + 0.5) * 2.0
            - 1.0
        )
        for camera, image in images.items()
    }


def _base_camera(key: jax.Array, image: jax.Array) -> jax.Array:
    geometric, color = jax.random.split(key, 2)
    return jitter(jax.random.split(color, 1)[0], warp(geometric, image))


def _wrist_camera(key: jax.Array, image: jax.Array) -> jax.Array:
    color = jax.random.split(key, 1)[0]
    return jitter(jax.random.split(color, 1)[0], image)


def warp(key: jax.Array, image: jax.Array) -> jax.Array:
    """The image cropped at random to 95 %, stretched back and rotated by up to 5°.

    All three are one bilinear resampling.
    Shapes: [S, S, 3] → [S, S, 3].
    """
    side = image.shape[0]
    crop_key, _, rotate_key = jax.random.split(key, 3)  # the middle one is the resize's, which draws nothing
    cropped = int(side * _CROP)
    slack = (side - cropped) / 2
    shift = jax.random.uniform(crop_key, (2,), minval=-slack, maxval=slack)  # y, x
    theta = jax.random.uniform(rotate_key, minval=-_ROTATE, maxval=_ROTATE)
    rotation = jnp.array([[jnp.cos(theta), jnp.sin(theta)], [-jnp.sin(theta), jnp.cos(theta)]])
    center = side / 2 - 0.5
    grid = jnp.mgrid[0:side, 0:side].reshape(2, -1) - center
    source = (
        rotation @ grid * (cropped / side) + shift[:, None] + center
    )  # where each output pixel comes from
    return jax.vmap(lambda c: jax.scipy.ndimage.map_coordinates(c, source, order=1, mode="constant"), -1, -1)(
        image
    ).reshape(image.shape)


def jitter(key: jax.Array, image: jax.Array) -> jax.Array:
    """The image with random brightness and contrast of HSV's value, and a random turn of the hue.

    Half of the keys leave the image unchanged.
    Shapes: [S, S, 3] in [0, 1].
    """
    brightness, contrast, hue, *_ = jax.random.split(key, 5)
    h, s, v = _to_hsv(image)
    v = _brighten(v, jax.random.uniform(brightness, minval=-_BRIGHTNESS, maxval=_BRIGHTNESS))
    v = _contrast(v, jax.random.uniform(contrast, minval=-_CONTRAST, maxval=_CONTRAST))
    h = h + jax.random.uniform(hue, minval=-_HUE, maxval=_HUE)
    return jnp.where(jax.random.bernoulli(key, _JITTER_PROBABILITY), _to_rgb(h, s, v), image)


def _brighten(v: jax.Array, amount: jax.Array) -> jax.Array:
    """`v` moved towards 0 for a negative amount, towards 1 for a positive one."""
    return jnp.where(amount < 0.0, v * (1.0 + amount), v * (1.0 - amount) + amount)


def _contrast(v: jax.Array, amount: jax.Array) -> jax.Array:
    """Three linear pieces through (0, 0), (½, ½) and (1, 1): slope s in the middle, 1/s at both ends."""
    s = jnp.tan((amount + 1.0) * (jnp.pi / 4))
    knee = s / (2 * (1 + s))
    return jnp.where(v < knee, v / s, jnp.where(v > 1 - knee, v / s + 1 - 1 / s, s * (v - 0.5) + 0.5))


def _to_hsv(rgb: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hue in turns, saturation and value, [S, S] each."""
    v, spread = rgb.max(-1), rgb.max(-1) - rgb.min(-1)
    brightest = jnp.argmax(rgb, -1)
    second, third = (jnp.take_along_axis(rgb, ((brightest + i) % 3)[..., None], -1)[..., 0] for i in (1, 2))
    hue = jnp.where(
        spread == 0, 0.0, (2 * brightest + (second - third) / jnp.where(spread == 0, 1.0, spread)) / 6
    )
    return hue, jnp.where(v == 0, 0.0, spread / jnp.where(v == 0, 1.0, v)), v


def _to_rgb(h: jax.Array, s: jax.Array, v: jax.Array) -> jax.Array:
    k = jnp.mod(jnp.array([5.0, 3.0, 1.0]) + h[..., None] * 6, 6)
    return v[..., None] * (1 - s[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
