"""Adam with its two moments in 8 bits (blocks that share a scale), or in bfloat16 with stochastic rounding.

Both are optax transformations that replace `optax.scale_by_adam`. The update is that of exact moments. Only
the moments kept for the next step are rounded. Leaves are processed in slices, in place: a float32 copy
exists of one slice, never of a whole moment.

Axes: D a leaf's last axis, K = ceil(D / 256) blocks of at most 256 along it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

BLOCK = 256
# Smaller leaves (norms, biases) stay in float32. Source: bitsandbytes bitsandbytes/optim/optimizer.py,
# `min_8bit_size`.
_SMALLEST = 4096
# Elements of a leaf that are in float32 at a time: 32 MiB a buffer, about eight of them.
_SLICE = 2**23

Arrays = tuple[jax.Array, ...]


def encode_second(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(codes, scale) of v >= 0: code = round(255 · (v / scale)^(1/8)), at least 1 where v > 0.

    The scale is max v over each block. An Adam update reads sqrt(v). The relative error of sqrt(v) is at most
    about 2 / code: 0.8 % at a block's largest value, 2.5 % at 10^-4 of it. A parameter with small gradients
    beside others with large ones therefore keeps its own step size. The range goes down to 10^-19 of the
    scale.
    Shapes: v float32 [..., D]; codes uint8 [..., D]; scale float32 [..., K].
    """
    blocks = _blocks(v)  # [..., K, 256]
    scale = jnp.max(blocks, axis=-1)
    eighth_root = jnp.sqrt(jnp.sqrt(jnp.sqrt(blocks / jnp.where(scale > 0, scale, 1.0)[..., None])))
    codes = jnp.where(blocks > 0, jnp.maximum(jnp.round(255 * eighth_root), 1), 0)
    return _unblocked(codes, v.shape).astype(jnp.uint8), scale


def decode_second(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """scale · (code / 255)^8, float32. Shapes as in `encode_second`."""
    root = _blocks(codes).astype(jnp.float32) / 255
    return _unblocked(jnp.square(jnp.square(jnp.square(root))) * scale[..., None], codes.shape)


def encode_first(m: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(codes, scale) of w = m / sqrt(v), with w = 0 where v = 0: code = round(127 · w / scale).

    The scale is max |w| over each block. w is Adam's update of a parameter, without the bias corrections of
    the first steps. By Cauchy and Schwarz |w| is at most (1 - b1) / sqrt((1 - b2)·(1 - b1²/b2)), 1.2 for 0.9
    and 0.95, whatever the gradient's size. Evenly spaced codes therefore serve all parameters of a block
    alike: the error of each is at most scale / 254. `v` is the second moment as it will be decoded, so its
    error cancels in w · sqrt(v).
    Shapes: m, v float32 [..., D]; codes int8 [..., D]; scale float32 [..., K].
    """
    size = jnp.sqrt(v)
    blocks = _blocks(jnp.where(size > 0, m / jnp.where(size > 0, size, 1.0), 0.0))  # [..., K, 256]
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    codes = jnp.round(127 * (blocks / jnp.where(scale > 0, scale, 1.0)[..., None]))
    return _unblocked(codes, m.shape).astype(jnp.int8), scale


def decode_first(codes: jax.Array, scale: jax.Array, v: jax.Array) -> jax.Array:
    """scale · code / 127 · sqrt(v), float32. Shapes as in `encode_first`."""
    return _unblocked(_blocks(codes).astype(jnp.float32) / 127 * scale[..., None], codes.shape) * jnp.sqrt(v)


def _blocks(x: jax.Array) -> jax.Array:
    """[..., D] → [..., K, min(D, 256)], the last block padded with zeros."""
    width = min(BLOCK, x.shape[-1])
    lacking = -x.shape[-1] % width
    if lacking:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lacking)])
    return x.reshape(*x.shape[:-1], -1, width)


def _unblocked(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[..., K, 256] → [..., D], without the padding of the last block."""
    return blocks.reshape(*shape[:-1], -1)[..., : shape[-1]]


class BlockwiseAdamState(NamedTuple):
    """Optimizer state: codes of the moments and their scales.

    `mu` (int8) and `nu` (uint8) have the shape of their parameter. Their float32 scales are [..., K]. A small
    leaf has float32 moments and no scale.
    """

    count: jax.Array
    mu: Any
    nu: Any
    mu_scale: Any
    nu_scale: Any


def scale_by_blockwise_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam that keeps its moments in 8-bit codes.

    v ← b2·D(v) + (1 - b2)·g²; m ← b1·D(m) + (1 - b1)·g; u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps);
    keep E(v) and E(m).

    For v, E and D are `encode_second` and `decode_second`. For m they are `encode_first` and `decode_first`,
    in units of the root of the decoded v. At the first step u is exactly Adam's.

    The published codes (dynamic trees in blocks, https://arxiv.org/abs/2110.02861, bitsandbytes) round m and
    v separately, at the same number of bytes. On the gradients of a training run they make the update 2 to 6
    times as wrong (benchmarks/approximate_levers.md).
    """

    def init(params: optax.Params) -> BlockwiseAdamState:
        def codes(p: jax.Array, dtype: jnp.dtype) -> jax.Array:
            return jnp.zeros(p.shape, dtype if _is_quantized(p) else jnp.float32)

        def scale(p: jax.Array) -> jax.Array | None:
            return (
                jnp.zeros((*p.shape[:-1], -(-p.shape[-1] // BLOCK)), jnp.float32)
                if _is_quantized(p)
                else None
            )

        mu, nu = (
            jax.tree.map(functools.partial(codes, dtype=dtype), params) for dtype in (jnp.int8, jnp.uint8)
        )
        # Two separate trees: a state is donated, and one buffer cannot be donated twice.
        return BlockwiseAdamState(
            jnp.zeros((), jnp.int32), mu, nu, jax.tree.map(scale, params), jax.tree.map(scale, params)
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, BlockwiseAdamState]:
        del params
        assert isinstance(state, BlockwiseAdamState)
        count = optax.safe_increment(state.count)
        adam = _Adam(b1, b2, eps, count)

        def quantized(
            _: jax.Array, g: jax.Array, mu: jax.Array, nu: jax.Array, mu_scale: jax.Array, nu_scale: jax.Array
        ) -> Arrays:
            kept = decode_second(nu, nu_scale)
            u, m, v = adam(g, decode_first(mu, mu_scale, kept), kept)
            nu, nu_scale = encode_second(v)
            mu, mu_scale = encode_first(m, decode_second(nu, nu_scale))
            return u.astype(g.dtype), mu, nu, mu_scale, nu_scale

        def leaf(
            g: jax.Array, mu: jax.Array, nu: jax.Array, mu_scale: jax.Array | None, nu_scale: jax.Array | None
        ) -> tuple[jax.Array | None, ...]:
            if mu_scale is None or nu_scale is None:
                return (*adam(g, mu, nu), None, None)
            return in_slices(quantized, (g, mu, nu, mu_scale, nu_scale))

        return _over_leaves(leaf, updates, count, state)

    return optax.GradientTransformation(init, update)


def scale_by_bfloat16_adam(b1: float, b2: float, eps: float, seed: int) -> optax.GradientTransformation:
    """Adam that keeps its moments in bfloat16, rounded at random.

    m ← b1·m + (1 - b1)·g; v ← b2·v + (1 - b2)·g²; u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps); keep
    R(m), R(v).

    R(x) is one of the two bfloat16 neighbours of x. The nearer neighbour is the likelier, so that E[R(x)] =
    x. Rounding to nearest would lose every contribution below 0.2 % of the moment. The random bits are a
    function of `seed`, the step and the leaf's position in the tree.
    Source: stochastic rounding as in https://arxiv.org/abs/1502.02551.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        count = optax.safe_increment(state.count)
        adam = _Adam(b1, b2, eps, count)
        keys = iter(
            jax.random.split(
                jax.random.fold_in(jax.random.key(seed), state.count), len(jax.tree.leaves(updates))
            )
        )

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> Arrays:
            key = next(keys)

            def rounded(start: jax.Array, g: jax.Array, mu: jax.Array, nu: jax.Array) -> Arrays:
                u, m, v = adam(g, mu.astype(jnp.float32), nu.astype(jnp.float32))
                bits = jax.random.bits(jax.random.fold_in(key, start), g.shape, jnp.uint32)
                return (
                    u.astype(g.dtype),
                    stochastic_bfloat16(m, bits & 0xFFFF),
                    stochastic_bfloat16(v, bits >> 16),
                )

            return in_slices(rounded, (g, mu, nu))

        return _over_leaves(leaf, updates, count, state)

    return optax.GradientTransformation(init, update)


def stochastic_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """`x` rounded to bfloat16 away from zero if its lower 16 bits plus `bits` carry over, else towards zero.

    `bits` are uniform in 0 … 65535. NaN and infinity stay.
    """
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((pattern + bits) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


class _Adam(NamedTuple):
    """One step of Adam on float32 moments; `count` is the number of the step, from 1."""

    b1: float
    b2: float
    eps: float
    count: jax.Array

    def __call__(self, g: jax.Array, m: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(update, first moment, second moment)."""
        g = g.astype(jnp.float32)
        m = (1 - self.b1) * g + self.b1 * m
        v = (1 - self.b2) * g**2 + self.b2 * v
        m_hat, v_hat = m / (1 - self.b1**self.count), v / (1 - self.b2**self.count)
        return m_hat / (jnp.sqrt(v_hat) + self.eps), m, v


def in_slices(function: Callable[..., Arrays], arrays: Arrays) -> Arrays:
    """New arrays from `function(first row, *slices) → new slices`, applied to all rows of `arrays` in place.

    Rows are all axes but the last, flattened. The loop carries the arrays, so XLA updates them in place. A
    scan that returned new arrays would hold each of them twice.
    """
    rows, width = math.prod(arrays[0].shape[:-1]), max(arrays[0].shape[-1:], default=1)
    size = _slice_rows(rows, width)
    flat = tuple(x.reshape(rows, -1) for x in arrays)

    def move(start: jax.Array | int, count: int, carried: Arrays) -> Arrays:
        slices = (jax.lax.dynamic_slice_in_dim(x, start, count, 0) for x in carried)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, new, start, 0)
            for x, new in zip(carried, function(jnp.asarray(start, jnp.int32), *slices), strict=True)
        )

    if rows <= size:
        done = function(jnp.zeros((), jnp.int32), *flat)
    else:
        done = jax.lax.fori_loop(0, rows // size, lambda i, carried: move(i * size, size, carried), flat)
        if rows % size:
            done = move(rows - rows % size, rows % size, done)
    return tuple(new.reshape(x.shape) for new, x in zip(done, arrays, strict=True))


def _slice_rows(rows: int, width: int) -> int:
    """Rows of a slice: a divisor of `rows` if one lies not far below the wanted maximum.

    With a divisor no shorter slice is left over.
    """
    most = max(1, _SLICE // width)
    return next((size for size in range(min(most, rows), most // 4, -1) if rows % size == 0), most)


def _over_leaves(
    leaf: Callable[..., tuple[Any, ...]], updates: optax.Updates, count: jax.Array, state: Any
) -> tuple[optax.Updates, Any]:
    """(new updates, new state), from `leaf` applied to each update and to its entries in the state's trees.

    An entry may be None.
    """
    gradients, structure = jax.tree.flatten(updates)
    columns = [structure.flatten_up_to(tree) for tree in state[1:]]
    moved = [leaf(g, *kept) for g, *kept in zip(gradients, *columns, strict=True)]
    trees = (
        [structure.unflatten(column) for column in zip(*moved, strict=True)]
        if moved
        else [updates, *state[1:]]
    )
    return trees[0], type(state)(count, *trees[1:])


def _is_quantized(p: jax.Array) -> bool:
    return p.size >= _SMALLEST
