"""Weights with optional low-rank adapters (LoRA), for one expert's attention and feed-forward.

y = x·W + (alpha / rank) · (x·A)·B, on the last two axes of W. LoRA: Hu et al. 2021,
https://arxiv.org/abs/2106.09685.

Parameters have a leading layer axis L. Inside the scan over layers a module sees one layer's slice, so
`__call__` is written for one layer.

Axes: L layers, B batch, T tokens, D width, F mlp dim, R adapter rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from harness.model.remat import GATE, UP, named
from harness.recipe.schema import Lora

# Source: openpi src/openpi/models/lora.py `LoRAConfig.init_fn`, commit 15a9616. Both factors start random,
# and so does their product.
_ADAPTER_INIT = nnx.initializers.normal(stddev=0.01)


def _lecun(in_axis: int | Sequence[int], batch_axes: int) -> nnx.initializers.Initializer:
    return nnx.initializers.lecun_normal(in_axis=in_axis, out_axis=-1, batch_axis=tuple(range(batch_axes)))


class Einsum(nnx.Module):
    """einsum(equation, x, W), with adapters if `lora` is given.

    `in_axis` names the contracted axes of the weight from the end. `batch_axes` is the number of its leading
    independent axes.
    """

    def __init__(
        self,
        layers: int,
        shape: Sequence[int],
        *,
        in_axis: int | Sequence[int],
        batch_axes: int,
        lora: Lora | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.w = nnx.Param(_lecun(in_axis, 1 + batch_axes)(rngs.params(), (layers, *shape)))
        self.scale = lora.alpha / lora.rank if lora else None
        if lora:
            self.lora_a = nnx.Param(_ADAPTER_INIT(rngs.params(), (layers, *shape[:-1], lora.rank)))
            self.lora_b = nnx.Param(_ADAPTER_INIT(rngs.params(), (layers, *shape[:-2], lora.rank, shape[-1])))

    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        y = jnp.einsum(equation, x, self.w.astype(x.dtype))
        if self.scale is None:
            return y
        down, up = _adapter_equations(equation)
        z = jnp.einsum(down, x, self.lora_a.astype(x.dtype))
        return y + jnp.einsum(up, z, self.lora_b.astype(x.dtype)) * jnp.asarray(self.scale, x.dtype)


def _adapter_equations(equation: str) -> tuple[str, str]:
    """The two einsums of x·A·B: the weight's last axis becomes R in A, its last but one becomes R in B.

    attn_vec_einsum contracts heads N as well as H. A then sums over the heads, and so does B, as upstream.
    The low-rank update of head n is A[n]·Σₘ B[m]: one shared bottleneck of rank R, not one per head.
    """
    match = re.fullmatch(r"(?<!\w)(\w++),(\w++)->(\w++)", equation)
    assert match, equation
    inputs, weight, output = match.groups()
    a_axis, b_axis = weight[-2], weight[-1]
    hidden = output.replace(b_axis, "R")
    return (
        f"{inputs},{weight.replace(b_axis, 'R')}->{hidden}",
        f"{hidden},{weight.replace(a_axis, 'R')}->{output}",
    )


class FeedForward(nnx.Module):
    """(gelu(x·W_gate) * (x·W_up))·W_down, each product with adapters if `lora` is given.

    Shapes: x [B, T, D]; gating_einsum [2, D, F]; linear [F, D].
    Source: openpi src/openpi/models/lora.py `FeedForward`, commit 15a9616, which omits alpha / rank here (see
    `recipe.Lora.scale_feed_forward`).
    """

    def __init__(self, layers: int, width: int, hidden: int, *, lora: Lora | None, rngs: nnx.Rngs) -> None:
        self.gating_einsum = nnx.Param(_lecun(-2, 2)(rngs.params(), (layers, 2, width, hidden)))
        self.linear = nnx.Param(_lecun(-2, 1)(rngs.params(), (layers, hidden, width)))
        self.scale = lora.feed_forward_scale() if lora else None
        if lora:
            r = lora.rank
            self.gating_einsum_lora_a = nnx.Param(_ADAPTER_INIT(rngs.params(), (layers, 2, width, r)))
            self.gating_einsum_lora_b = nnx.Param(_ADAPTER_INIT(rngs.params(), (layers, 2, r, hidden)))
            self.linear_lora_a = nnx.Param(_ADAPTER_INIT(rngs.params(), (layers, hidden, r)))
            self.linear_lora_b = nnx.Param(_ADAPTER_INIT(rngs.params(), (layers, r, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = jax.nn.gelu(named(self._gating(x, 0), GATE))
        hidden = gate * named(self._gating(x, 1), UP)  # [B, T, F]
        adapters = (self.linear_lora_a[...], self.linear_lora_b[...]) if self.scale is not None else None
        return self._product(hidden, self.linear[...], adapters)

    def _gating(self, x: jax.Array, i: int) -> jax.Array:
        adapters = (
            (self.gating_einsum_lora_a[i], self.gating_einsum_lora_b[i]) if self.scale is not None else None
        )
        return self._product(x, self.gating_einsum[i], adapters)

    def _product(self, x: jax.Array, w: jax.Array, adapters: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        y = x @ w.astype(x.dtype)
        if adapters is None:
            return y
        a, b = (factor.astype(x.dtype) for factor in adapters)
        return y + (x @ a) @ b * jnp.asarray(self.scale, x.dtype)
