"""Attention of the action rows, as two GPU kernels: the longest part of an Euler step that is no weight.

An Euler step asks a few action rows of a prefix that does not change. Written in XLA's operations, keys and
values of the prefix are copied behind the new ones at every step, and rotation, logits, softmax and values
are four kernels. Here the new keys and values are read where the product wrote them:

1. `logits`: each program rotates a block of queries and a block of keys, and multiplies them.
2. `values`: each program makes the shares of a block of queries, and sums some columns of the values.

Rounding is that of `harness.serve.program`: rotated queries and keys are cast to the compute type, logits and
softmax are float32, shares are cast to the compute type. The kernels are written in Pallas, which compiles
them with Triton for GPUs of compute capability 8.0 and newer. On a CPU `interpret` computes the same.
`harness.serve.kernel_check` compares them with XLA's operations before anybody is served.

Axes: B rows of the batch, R action rows, N query heads, Q queries (R·N, heads innermost), S prefix tokens, K
keys (S + R), H head dim.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from harness.serve.attention import MASKED

# Of `logits`: action rows and keys of a program. Of `values`: queries, keys of a turn, and columns. Triton
# takes powers of two, and products of at least 16. Small blocks give many programs, which share the reading.
_ROWS, _KEYS = 2, 32
_QUERIES, _TURN, _COLUMNS = 16, 64, 32


class Asked(NamedTuple):
    """What the kernels read.

    Shapes: heads [B, R, N + 2, H], unrotated queries, the key and the value of each action row; prefix_k and
    prefix_v [B, S, H], rotated; sin and cos float32 [B, R, H/2]; keys int32 [B, K], 0 for those that are not
    real.
    """

    heads: jax.Array
    prefix_k: jax.Array
    prefix_v: jax.Array
    sin: jax.Array
    cos: jax.Array
    keys: jax.Array


@functools.partial(jax.jit, static_argnames="interpret")
def attended(asked: Asked, *, interpret: bool = False) -> jax.Array:
    """softmax(q·kᵀ / sqrt(H))·v of every query, [B, R, N·H], for heads that share one key and one value.

    R is a multiple of 8; N and H are powers of two. A program traces it once for all its layers and steps.
    """
    b, r, groups, h = asked.heads.shape
    s, n = asked.prefix_k.shape[1], groups - 2
    q, k = r * n, s + r
    logits = pl.pallas_call(
        functools.partial(_logits_kernel, s=s, scale=h**-0.5),
        out_shape=jax.ShapeDtypeStruct((b, q, k), jnp.float32),
        grid=(b, r // _ROWS, pl.cdiv(k, min(_KEYS, k))),
        in_specs=[_whole(x) for x in (asked.heads, asked.prefix_k, asked.sin, asked.cos, asked.keys)],
        out_specs=_whole(jax.ShapeDtypeStruct((b, q, k), jnp.float32)),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="action_logits",
    )(asked.heads, asked.prefix_k, asked.sin, asked.cos, asked.keys)
    out = pl.pallas_call(
        functools.partial(_values_kernel, s=s),
        out_shape=jax.ShapeDtypeStruct((b, q, h), asked.heads.dtype),
        grid=(b, q // _QUERIES, pl.cdiv(h, min(_COLUMNS, h))),
        in_specs=[_whole(x) for x in (logits, asked.heads, asked.prefix_v)],
        out_specs=_whole(jax.ShapeDtypeStruct((b, q, h), asked.heads.dtype)),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="action_values",
    )(logits, asked.heads, asked.prefix_v)
    return out.reshape(b, r, n * h)


def _whole(x: Any) -> pl.BlockSpec:
    """One row of the batch, whole: the kernels take what they need of it."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda row, *_: (row, *(0 for _ in x.shape[1:])))


def _turned(low: jax.Array, high: jax.Array, sin: jax.Array, cos: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both halves of the channels, rotated, in their own type."""
    a, b = low.astype(jnp.float32), high.astype(jnp.float32)
    return (a * cos - b * sin).astype(low.dtype), (b * cos + a * sin).astype(low.dtype)


def _logits_kernel(
    heads_ref: Any,
    k_ref: Any,
    sin_ref: Any,
    cos_ref: Any,
    keys_ref: Any,
    out_ref: Any,
    *,
    s: int,
    scale: float,
) -> None:
    r, groups, h = heads_ref.shape
    n, half = groups - 2, h // 2
    low, high = pl.ds(0, half), pl.ds(half, half)
    # Queries [rows, N, H/2], twice.
    rows = pl.ds(pl.program_id(1) * _ROWS, _ROWS)
    sin, cos = (ref[rows, :][:, None] for ref in (sin_ref, cos_ref))
    q = _turned(heads_ref[rows, pl.ds(0, n), low], heads_ref[rows, pl.ds(0, n), high], sin, cos)
    q_low, q_high = ((x * jnp.asarray(scale, x.dtype)).reshape(_ROWS * n, half) for x in q)
    # Keys [keys, H/2], twice: of the prefix, or of an action row. The last block begins early.
    size = min(_KEYS, s + r)
    first = jnp.minimum(pl.program_id(2) * size, s + r - size)
    at = first + jnp.arange(size)
    own = jnp.clip(at - s, 0, r - 1)
    sin, cos = sin_ref[own, :], cos_ref[own, :]
    mine = _turned(heads_ref[own, n, low], heads_ref[own, n, high], sin, cos)
    seen = jnp.minimum(at, s - 1)
    of_prefix = (at < s)[:, None]
    k_low, k_high = (
        jnp.where(of_prefix, k_ref[seen, part], x) for part, x in zip((low, high), mine, strict=True)
    )
    logits = triton.dot(q_low, k_low, trans_b=True) + triton.dot(q_high, k_high, trans_b=True)
    queries = pl.ds(pl.program_id(1) * _ROWS * n, _ROWS * n)
    out_ref[queries, pl.ds(first, size)] = jnp.where((keys_ref[at] != 0)[None], logits, MASKED)


def _values_kernel(logits_ref: Any, heads_ref: Any, v_ref: Any, out_ref: Any, *, s: int) -> None:
    r, groups, _ = heads_ref.shape
    n, k = groups - 2, s + r
    size, width = min(_TURN, k), min(_COLUMNS, v_ref.shape[1])
    queries = pl.ds(pl.program_id(1) * _QUERIES, _QUERIES)
    columns = pl.ds(pl.program_id(2) * width, width)
    turns = pl.cdiv(k, size)

    def logits(turn: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(which keys, their logits). The last turn begins early, and leaves out what was there before."""
        first = jnp.minimum(turn * size, k - size)
        at = first + jnp.arange(size)
        return at, jnp.where((at >= turn * size)[None], logits_ref[queries, pl.ds(first, size)], -jnp.inf)

    def largest(turn: jax.Array, seen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        most, total = seen
        _, found = logits(turn)
        now = jnp.maximum(most, found.max(-1))
        return now, total * jnp.exp(most - now) + jnp.exp(found - now[:, None]).sum(-1)

    start = (jnp.full((_QUERIES,), -jnp.inf), jnp.zeros((_QUERIES,), jnp.float32))
    most, total = jax.lax.fori_loop(0, turns, largest, start)

    def summed(turn: jax.Array, out: jax.Array) -> jax.Array:
        at, found = logits(turn)
        shares = (jnp.exp(found - most[:, None]) / total[:, None]).astype(v_ref.dtype)
        own = jnp.clip(at - s, 0, r - 1)
        v = jnp.where(
            (at < s)[:, None], v_ref[jnp.minimum(at, s - 1), columns], heads_ref[own, n + 1, columns]
        )
        return out + triton.dot(shares, v)

    out = jax.lax.fori_loop(0, turns, summed, jnp.zeros((_QUERIES, width), jnp.float32))
    out_ref[queries, columns] = out.astype(out_ref.dtype)
