"""Attention of the program that serves: of the prefix to itself, and of the action rows to both.

All heads share one key and one value. Numerics are those of harness/model/: rotation, logits and softmax in
float32, the rest in the compute type.

Some lines only steer XLA towards fewer kernels. `optimization_barrier` around arrays of one shape makes one
kernel write them all.

Axes: B rows, T tokens, S prefix tokens, R action rows, K keys (S + R), N query heads, H head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harness.serve.lengths import Kernels

# A finite stand-in for -inf: that of harness/model/gemma.py.
MASKED = -2.3819763e38


class Turn(NamedTuple):
    """Sine and cosine of the rotary embedding, float32 [B, tokens, 1, 1, H/2]."""

    sin: jax.Array
    cos: jax.Array


def turn_of(positions: jax.Array, head_dim: int) -> Turn:
    """The turn of tokens at `positions` [B, tokens]."""
    exponents = np.float32(2.0 / head_dim) * np.arange(head_dim // 2, dtype=np.float32)
    timescale = np.float32(10_000) ** exponents  # wavelengths up to 10,000
    radians = (positions[..., None] / timescale)[..., None, None, :]
    return Turn(jnp.sin(radians), jnp.cos(radians))


def asked_of(heads: jax.Array, turn: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(rotated and scaled queries [B, T·N, H], rotated keys [B, T, H], values [B, T, H]).

    `heads` [B, T, N + 2, H]: queries first, then the key, then the value.
    """
    b, _, _, h = heads.shape
    q = turned(heads[:, :, :-2], turn) * jnp.asarray(h**-0.5, heads.dtype)
    return q.reshape(b, -1, h), turned(heads[:, :, -2:-1], turn)[:, :, 0], heads[:, :, -1]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array, rows: int) -> jax.Array:
    """softmax(q·kᵀ)·v for the first `rows` queries, with logits and softmax in float32.

    All heads share one key and one value. Shapes: q [B, ≥ rows, H]; k, v [B, K, H]; keys bool [B, 1, K];
    result [B, rows, H].
    """
    logits = jnp.einsum("brh,bkh->brk", q, k, preferred_element_type=jnp.float32)[:, :rows]
    shares = jax.nn.softmax(jnp.where(keys, logits, MASKED), axis=-1).astype(q.dtype)
    return jnp.einsum("brk,bkh->brh", shares, v)


def attention_of_rows(
    heads: jax.Array, prefix: tuple[jax.Array, jax.Array], turn: Turn, keys: jax.Array, *, kernels: Kernels
) -> jax.Array:
    """What the action rows [B, R, N + 2, H] see of the prefix and of each other, [B, R, N·H].

    `prefix`: rotated keys and values [B, S, H]; keys bool [B, 1, K].
    """
    if kernels != "none":
        # Pallas is slow to import, and sets variables of the process.
        from harness.serve.kernels import Asked, attended

        sin, cos = (x[:, :, 0, 0] for x in turn)
        asked = Asked(heads, *prefix, sin, cos, keys[:, 0].astype(jnp.int32))
        return attended(asked, interpret=kernels == "interpreted")
    q, k, v = asked_of(heads, turn)
    rows = q.shape[1]
    q, k, v = _together(q, _behind(prefix[0], k), _behind(prefix[1], v))
    return attention(q, k, v, keys, rows).reshape(*heads.shape[:2], -1)


def turned(x: jax.Array, turn: Turn) -> jax.Array:
    """`x` [B, tokens, heads, H], rotated.

    Written with a flip and not a concatenation: what is no concatenation shares a kernel with others.
    """
    halves = x.reshape(*x.shape[:-1], 2, -1)
    signed = turn.sin * jnp.asarray([[-1.0], [1.0]])
    return (halves * turn.cos + jnp.flip(halves, -2) * signed).reshape(x.shape).astype(x.dtype)


def _behind(prefix: jax.Array, own: jax.Array) -> jax.Array:
    """`prefix` [B, S, H] and then `own` [B, R, H]; as a choice of each element, see `turned`."""
    s, r = prefix.shape[1], own.shape[1]
    zero = jnp.zeros((), own.dtype)
    in_prefix = (jnp.arange(s + r) < s)[None, :, None]
    longer = jax.lax.pad(prefix, zero, [(0, 0, 0), (0, r, 0), (0, 0, 0)])
    return jnp.where(in_prefix, longer, jax.lax.pad(own, zero, [(0, 0, 0), (s, 0, 0), (0, 0, 0)]))


def _together(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q, padded with rows of zeros to the shape of k; k; v): one kernel writes them.

    A single row of the batch is bound by the number of kernels, and the product with these rows of zeros
    costs nothing. Several rows are not, so their q stays as it is.
    """
    if k.shape[0] == 1 and q.shape[1] <= k.shape[1]:
        q = jnp.pad(q, ((0, 0), (0, k.shape[1] - q.shape[1]), (0, 0)))
    q, k, v = jax.lax.optimization_barrier((q, k, v))
    return q, k, v
