"""softmax(q·kᵀ)·v of the language model and the action expert, with a backward pass of its own.

Queries lie as they come out of their projection: for each key/value head the rows are the tokens times the
query heads that share it. Nothing is transposed on the way to the products, and softmax runs along the axis
that lies together in memory. The number of keys is padded to a multiple of 8, which tensor cores ask for.

The backward pass gets queries, keys, values and mask, and computes the probabilities again. So the float32
logits of a layer are never kept, with or without rematerialization. It rounds the gradient of the logits to
the compute type before the last two products, as flash attention does (https://arxiv.org/abs/2307.08691,
section 3.1); in float32 that changes nothing.

cuDNN's flash attention (jax.nn.dot_product_attention) is not used. Its backward pass takes heads of at most
128 on Ampere and Ada, and Gemma's have 256. Only Hopper allows them, and its cards have the memory anyway.
JAX also asks the present device, so such a step cannot be compiled for a card that is not here. Sources:
cuDNN 9.18, "Attention", support matrix; jax/_src/cudnn/fused_attention_stablehlo.py,
`check_is_flash_attention`, 0.10.2.

Axes: B batch, T query tokens, S key/value tokens, N query heads, K key/value heads, R rows (T·N/K), H head
dim, P pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

# How attention is computed: for the whole batch at once, or for a few samples at a time.
AttentionForm = Literal["full", "chunked"]

# A finite stand-in for -inf: a row whose keys are all masked stays finite. Gemma's own constant.
_MASKED = -2.3819763e38
# Logits of a piece of "chunked": 64 MiB in float32, six samples of the published recipe.
_PIECE_LOGITS = 2**24
# The number of keys is a multiple of this.
_ALIGNED = 8


class _Asked(NamedTuple):
    """q [B, K, R, H]; k, v [B, K, S, H]; mask bool [B, T, S]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: jax.Array


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, form: AttentionForm = "full"
) -> jax.Array:
    """softmax(q·kᵀ)·v with logits and softmax in float32; q is already scaled.

    "chunked" computes a few samples at a time, in both directions: float32 logits exist only for these. Piece
    i has samples i, i + P, i + 2P, …: each of several devices then works on samples that it holds.

    Shapes: q [B, T, N, H]; k, v [B, S, K, H] with N a multiple of K; mask bool [B, T, S]; result [B, T, N,
    H].
    """
    b, t, n, h = q.shape
    heads = k.shape[2]
    lacking = ((0, 0), (0, -k.shape[1] % _ALIGNED))
    k, v = (jnp.pad(x, (*lacking, (0, 0), (0, 0))).swapaxes(1, 2) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), *lacking))
    rows = q.reshape(b, t, heads, n // heads, h).swapaxes(1, 2).reshape(b, heads, -1, h)
    fits = b if form == "full" else max(1, _PIECE_LOGITS // (n * t * k.shape[2]))
    size = next(size for size in range(min(fits, b), 0, -1) if b % size == 0)
    out = _attend(b // size, _Asked(rows, k, v, mask))
    return out.reshape(b, heads, t, n // heads, h).swapaxes(1, 2).reshape(b, t, n, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(pieces: int, asked: _Asked) -> jax.Array:
    out: jax.Array = _in_pieces(_forward, pieces, asked)
    return out


def _keep(pieces: int, asked: _Asked) -> tuple[jax.Array, _Asked]:
    return _attend(pieces, asked), asked


def _turn_back(pieces: int, asked: _Asked, gradient: jax.Array) -> tuple[_Asked]:
    return (_in_pieces(_backward, pieces, asked, gradient),)


_attend.defvjp(_keep, _turn_back)


def _forward(asked: _Asked) -> jax.Array:
    return jnp.einsum("bkrs,bksh->bkrh", _probabilities(asked).astype(asked.q.dtype), asked.v)


def _backward(asked: _Asked, gradient: jax.Array) -> _Asked:
    """The gradients of q, k and v; the mask has none."""
    narrow = _probabilities(asked).astype(asked.q.dtype)
    of_v = jnp.einsum("bkrs,bkrh->bksh", narrow, gradient)
    of_p = jnp.einsum("bkrh,bksh->bkrs", gradient, asked.v).astype(jnp.float32)
    # From the probabilities as they were multiplied: their float32 form would be another array of logits.
    wide = narrow.astype(jnp.float32)
    of_logits = (wide * (of_p - jnp.sum(wide * of_p, axis=-1, keepdims=True))).astype(asked.q.dtype)
    of_q = jnp.einsum("bkrs,bksh->bkrh", of_logits, asked.k)
    of_k = jnp.einsum("bkrs,bkrh->bksh", of_logits, asked.q)
    return _Asked(of_q, of_k, of_v, None)  # type: ignore[arg-type]


def _probabilities(asked: _Asked) -> jax.Array:
    """softmax(q·kᵀ), float32 [B, K, R, S]."""
    # Behind the barrier, what follows belongs to its layer. Without it JAX takes the constant and the mask of
    # all rows out of the loop over the layers, and each layer reads them in full size.
    mask, q, masked = jax.lax.optimization_barrier((asked.mask, asked.q, jnp.float32(_MASKED)))
    logits = jnp.einsum("bkrh,bksh->bkrs", q, asked.k, preferred_element_type=jnp.float32)
    b, heads, rows, s = logits.shape
    by_token = logits.reshape(b, heads, mask.shape[1], -1, s)
    return jax.nn.softmax(jnp.where(mask[:, None, :, None], by_token, masked), axis=-1).reshape(
        b, heads, rows, s
    )


def _in_pieces(compute: Callable[..., Any], pieces: int, *given: jax.Array | _Asked) -> Any:
    """compute(*given), a piece of the batch at a time."""
    if pieces == 1:
        return compute(*given)
    cut = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), given)
    out = jax.lax.map(lambda one: compute(*one), cut)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)
