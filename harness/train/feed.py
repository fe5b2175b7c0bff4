"""Sends a batch of the loader to the device and resizes its images there to the model's size.

Resizing on the device costs the host nothing. It gives the same pixels as Pillow: the same integer operations
in the same order.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harness.data.resample import BITS, fit, weights
from harness.train.arrays import put_rows

_INPUTS = ("images", "tokens", "token_mask", "actions")
# Those of a mixture.
_OF_MIXTURE = ("image_masks", "dataset")


def feed(batch: dict[str, Any], rows: Any, size: int) -> dict[str, Any]:
    """The training step's inputs from a batch, on the devices of the sharding `rows`.

    Images are uint8 {camera: [B, size, size, 3]}. The call does not wait: copying and resizing run while the
    step before is computed.
    """
    names = [*_INPUTS, *(name for name in _OF_MIXTURE if name in batch)]
    inputs = put_rows({name: batch[name] for name in names}, rows)
    square = (size, size)
    images = {
        camera: x if x.shape[1:3] == square else resize(x, size, rows)
        for camera, x in inputs["images"].items()
    }
    return inputs | {"images": images}


def frames_digest(index: np.ndarray) -> str:
    """16 hexadecimal digits of the sha256 of a global batch's frame numbers, in their order.

    A line of metrics records with it which frames a step has seen.
    """
    return hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()[:16]


@partial(jax.jit, static_argnums=(1, 2))
def resize(images: jax.Array, size: int, rows: Any = None) -> jax.Array:
    """Square images resized as by `harness.data.transforms.resize_with_pad`, to the last bit.

    `rows` is the sharding of the result.
    Shapes: uint8 [B, H, H, 3] to [B, size, size, 3].
    """
    # Upstream rounds down. For some sizes a row and a column of the square therefore stay black.
    height, width = images.shape[1:3]
    small = fit(height, width, size)
    resized = _resample(_resample(images, 2, small.width), 1, small.height)
    around = [(small.top, size - small.height - small.top), (small.left, size - small.width - small.left)]
    square = jnp.pad(resized, [(0, 0), *around, (0, 0)])
    return square if rows is None else jax.lax.with_sharding_constraint(square, rows)


def _resample(images: jax.Array, axis: int, after: int) -> jax.Array:
    """The images resampled along `axis`, in one pass.

    A pixel of at most 255 times 2²², plus the half for rounding, still fits an int32.
    """
    index, weight = weights(images.shape[axis], after)
    shape = [1] * images.ndim
    shape[axis] = after
    total = jnp.full((), 1 << (BITS - 1), jnp.int32)
    for k in range(index.shape[1]):
        total = total + jnp.take(images, index[:, k], axis=axis).astype(jnp.int32) * weight[:, k].reshape(
            shape
        )
    return jnp.clip(total >> BITS, 0, 255).astype(jnp.uint8)
