"""SigLIP's vision tower: maps an image to one token per patch, in the language model's width.

Sources: Zhai et al. 2023, https://arxiv.org/abs/2303.15343; openpi src/openpi/models/siglip.py at commit
15a9616 for the numerics (patches and position embedding in float32, the rest in the compute type) and for
every parameter's name.

Axes: B batch, P patches, D width, N heads, H head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from harness.model.remat import (
    VISION_ENCODED,
    VISION_HIDDEN,
    VISION_KEY_VALUE,
    VISION_QUERY,
    Remat,
    named,
    rematerialized,
)
from harness.recipe.parameters import VisionSize

_KERNEL = nnx.initializers.xavier_uniform()
_EPSILON = 1e-6


def _flat_xavier(key: jax.Array, layers: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> jax.Array:
    """Xavier over the matrix that a multi-axis projection flattens to, independently for each layer."""
    rows, columns = _product(inputs), _product(outputs)
    init = nnx.initializers.variance_scaling(
        1.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=(0,)
    )
    return init(key, (layers, rows, columns)).reshape(layers, *inputs, *outputs)


def _product(sizes: tuple[int, ...]) -> int:
    n = 1
    for size in sizes:
        n *= size
    return n


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + 1e-6) * scale + bias over the last axis, statistics in float32."""

    def __init__(self, *shape: int) -> None:
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        # E[x²] - E[x]² needs one pass and is what flax's LayerNorm computes, unlike E[(x - mean)²].
        variance = jnp.maximum(0.0, jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean))
        y = (wide - mean) * (jax.lax.rsqrt(variance + _EPSILON) * self.scale) + self.bias
        return y.astype(x.dtype)


class Projection(nnx.Module):
    """x·kernel + bias in x's type; kernel [L, *inputs, *outputs] contracts all the input axes."""

    def __init__(
        self,
        layers: int,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        bias_std: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(_flat_xavier(rngs.params(), layers, inputs, outputs))
        self.bias = nnx.Param(bias_std * jax.random.normal(rngs.params(), (layers, *outputs)))
        self.contracted = len(inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tensordot(x, self.kernel.astype(x.dtype), axes=self.contracted) + self.bias.astype(x.dtype)


class Attention(nnx.Module):
    """softmax(q·kᵀ / sqrt(H))·v over all patches."""

    def __init__(self, size: VisionSize, rngs: nnx.Rngs) -> None:
        heads = (size.heads, size.width // size.heads)
        for name in ("query", "key", "value"):
            setattr(self, name, Projection(size.depth, (size.width,), heads, bias_std=0.0, rngs=rngs))
        self.out = Projection(size.depth, heads, (size.width,), bias_std=0.0, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q = named(self.query(x), VISION_QUERY)  # [B, P, N, H]
        k, v = (named(project(x), VISION_KEY_VALUE) for project in (self.key, self.value))
        logits = jnp.einsum("bqnh,bknh->bnqk", q / jnp.sqrt(q.shape[-1]).astype(q.dtype), k)
        return self.out(named(jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(logits), v), VISION_ENCODED))


class MlpBlock(nnx.Module):
    """gelu(x·W₀ + b₀)·W₁ + b₁."""

    def __init__(self, size: VisionSize, rngs: nnx.Rngs) -> None:
        self.Dense_0 = Projection(size.depth, (size.width,), (size.mlp_dim,), bias_std=1e-6, rngs=rngs)
        self.Dense_1 = Projection(size.depth, (size.mlp_dim,), (size.width,), bias_std=1e-6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.Dense_1(jax.nn.gelu(named(self.Dense_0(x), VISION_HIDDEN)))


class EncoderBlock(nnx.Module):
    """Pre-norm transformer block; attribute names are those of the released checkpoints."""

    def __init__(self, size: VisionSize, rngs: nnx.Rngs) -> None:
        self.LayerNorm_0 = LayerNorm(size.depth, size.width)
        self.MultiHeadDotProductAttention_0 = Attention(size, rngs)
        self.LayerNorm_1 = LayerNorm(size.depth, size.width)
        self.MlpBlock_0 = MlpBlock(size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x))
        return x + self.MlpBlock_0(self.LayerNorm_1(x))


class Transformer(nnx.Module):
    """The blocks as one scan over the layer axis, then the final norm."""

    def __init__(
        self, size: VisionSize, *, remat: Remat, fetch: Callable[[Any], Any], rngs: nnx.Rngs
    ) -> None:
        self.encoderblock = EncoderBlock(size, rngs)
        self.encoder_norm = LayerNorm(size.width)
        self.remat = remat
        self.fetch = fetch

    def __call__(self, x: jax.Array) -> jax.Array:
        graph, stacked = nnx.split(self.encoderblock)

        def layer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            # Indexed from the whole stack, as in the language model. A scan over the parameters themselves
            # copies each slice, and takes XLA longer to compile.
            one = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, i, 0, keepdims=False), stacked)
            return nnx.merge(graph, self.fetch(one))(x), None

        depth = jax.tree.leaves(stacked)[0].shape[0]
        x, _ = jax.lax.scan(rematerialized(layer, self.remat), x, jnp.arange(depth))
        return self.encoder_norm(x)


class PatchEmbedding(nnx.Module):
    """Non-overlapping patches times a kernel: a convolution whose stride is its size, in float32."""

    def __init__(self, size: VisionSize, rngs: nnx.Rngs) -> None:
        shape = (size.patch, size.patch, 3, size.width)
        self.kernel = nnx.Param(
            nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=-1)(rngs.params(), shape)
        )
        self.bias = nnx.Param(jnp.zeros(size.width))

    def __call__(self, image: jax.Array) -> jax.Array:
        patch, _, channels, width = self.kernel.shape
        b, h, w, _ = image.shape
        x = image.reshape(b, h // patch, patch, w // patch, patch, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(
            b, (h // patch) * (w // patch), patch * patch * channels
        )  # [B, P, patch²·3]
        return x @ self.kernel.reshape(-1, width) + self.bias


class Head(nnx.Module):
    """Linear map from the tower's width to the language model's; zero at first, as upstream."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype)


class SigLIP(nnx.Module):
    """Image float32 [B, S, S, 3] in [-1, 1] → tokens [B, P, out_width] in the compute type."""

    def __init__(
        self,
        size: VisionSize,
        image_size: int,
        out_width: int,
        *,
        dtype: jnp.dtype,
        remat: Remat,
        fetch: Callable[[Any], Any],
        rngs: nnx.Rngs,
    ) -> None:
        patches = (image_size // size.patch) ** 2
        self.embedding = PatchEmbedding(size, rngs)
        self.pos_embedding = nnx.Param(
            size.width**-0.5 * jax.random.normal(rngs.params(), (1, patches, size.width))
        )
        self.Transformer = Transformer(size, remat=remat, fetch=fetch, rngs=rngs)
        self.head = Head(size.width, out_width)
        self.dtype = dtype

    def __call__(self, image: jax.Array) -> jax.Array:
        x = self.embedding(image) + self.pos_embedding  # [B, P, D], float32
        return self.head(self.Transformer(x.astype(self.dtype)))
