"""The vision tower of the program that serves: all cameras of all rows in one pass.

Numerics as in harness/model/siglip.py: patches and position embedding in float32, the rest in the compute
type, statistics of the norms in float32.

Axes: B rows, C cameras, P patches, N heads, H head dim, D width, F mlp dim, L language width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from harness.serve.program import Sizes

_EPSILON = 1e-6


class Scaled(NamedTuple):
    """Scale and bias of a norm, [D] each."""

    scale: jax.Array
    bias: jax.Array


class VisionLayer(NamedTuple):
    """One block.

    Shapes: qkv [D, 3·D], queries, keys, values; out [D, D]; up [D, F]; down [F, D]; their biases.
    """

    attention_norm: Scaled
    qkv: jax.Array
    qkv_bias: jax.Array
    out: jax.Array
    out_bias: jax.Array
    feed_forward_norm: Scaled
    up: jax.Array
    up_bias: jax.Array
    down: jax.Array
    down_bias: jax.Array


class VisionArrays(NamedTuple):
    """Shapes: patches [patch²·3, D]; positions [P, D]; head [D, L]."""

    patches: jax.Array
    patches_bias: jax.Array
    positions: jax.Array
    layers: Sequence[VisionLayer]
    final_norm: Scaled
    head: jax.Array
    head_bias: jax.Array


def image_tokens(arrays: VisionArrays, sizes: Sizes, images: jax.Array) -> jax.Array:
    """Tokens [B, P·C, L] of images uint8 [B, C, S, S, 3]: of each patch those of all cameras.

    Inside, the patch is the first axis: then the heads' results lie side by side as the next product reads
    them, and no kernel transposes them.
    """
    b, cameras = images.shape[:2]
    pixels = _patches(images.reshape(b * cameras, *images.shape[2:]), sizes.patch)
    x = jax.lax.optimization_barrier(pixels @ arrays.patches)
    x = (x + (arrays.patches_bias + arrays.positions)[:, None]).astype(sizes.dtype)  # [P, B·C, D]
    for layer in arrays.layers:
        x = x + _attended(_normed(x, layer.attention_norm), layer, sizes.vision_heads)
        hidden = jax.nn.gelu(_normed(x, layer.feed_forward_norm) @ layer.up + layer.up_bias)
        x = x + (hidden @ layer.down + layer.down_bias)
    out = _normed(x, arrays.final_norm) @ arrays.head + arrays.head_bias
    p = out.shape[0]
    return out.reshape(p, b, cameras, -1).transpose(1, 0, 2, 3).reshape(b, p * cameras, -1)


def _patches(images: jax.Array, patch: int) -> jax.Array:
    """Pixels float32 [P, images, patch²·3] in [-1, 1] of images uint8 [images, S, S, 3]."""
    n, side, _, channels = images.shape
    x = images.reshape(n, side // patch, patch, side // patch, patch, channels).transpose(1, 3, 0, 2, 4, 5)
    x = x.reshape((side // patch) ** 2, n, patch * patch * channels)
    return x.astype(jnp.float32) / 255.0 * 2.0 - 1.0


def _normed(x: jax.Array, norm: Scaled) -> jax.Array:
    """Layer norm. The variance is the mean of the squared distances, for which XLA makes one kernel."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * (jax.lax.rsqrt(variance + _EPSILON) * norm.scale) + norm.bias
    return y.astype(x.dtype)


def _attended(x: jax.Array, layer: VisionLayer, heads: int) -> jax.Array:
    """softmax(q·kᵀ / sqrt(H))·v over the patches of each image; x [P, images, D]."""
    p, n, d = x.shape
    qkv = (x @ layer.qkv + layer.qkv_bias).reshape(p, n, 3, heads, d // heads)
    q, k, v = (qkv[:, :, i].reshape(p, n * heads, -1).transpose(1, 0, 2) for i in range(3))
    q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    q, k, v = jax.lax.optimization_barrier((q, k, v))
    logits = jnp.einsum("bqh,bkh->bqk", q, k)
    out = jnp.einsum("bqk,bkh->bqh", jax.nn.softmax(logits), v).transpose(1, 0, 2).reshape(p, n, d)
    return out @ layer.out + layer.out_bias
