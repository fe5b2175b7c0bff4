"""Adam with its two moments in less than float32: 8 bits in blocks that share a scale, or bfloat16 rounded at random.

Both are optax transformations in the place of `optax.scale_by_adam`. The update is that of exact moments; what is kept of them for
the next step is rounded. Leaves are worked through in slices, in place: a float32 copy exists of one slice, never of a moment.

Axes: D a leaf's last axis, K = ceil(D / 256) blocks of at most 256 along it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLOCK = 256
# Smaller leaves (norms, biases) stay in float32. Source: bitsandbytes bitsandbytes/optim/optimizer.py, `min_8bit_size`.
_SMALLEST = 4096
# Elements of a leaf that are in float32 at a time: 32 MiB a buffer, about eight of them.
_SLICE = 2**23

Arrays = tuple[jax.Array, ...]


def dynamic_code(*, signed: bool) -> np.ndarray[Any, Any]:
    """The 256 values in [-1, 1] (or [0, 1]) that 8 bits stand for, ascending, float32.

    A value is 10^-e times a fraction in (0.1, 1): each decade has half the fractions of the one above it, seven decades in all,
    besides 0 and 1. So the relative error is small near 1 and the range reaches down to 10^-7.
    Source: "dynamic tree quantization" of https://arxiv.org/abs/2110.02861, with the table of bitsandbytes `create_dynamic_map`.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1)
        fractions = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*fractions, *(-fractions if signed else ())]
    return np.sort(np.array(values, np.float32))


SIGNED, UNSIGNED = dynamic_code(signed=True), dynamic_code(signed=False)


def encode(x: jax.Array, *, signed: bool) -> tuple[jax.Array, jax.Array]:
    """(codes, scale): code = argmin |x / scale - code value|, scale = max |x| over each block of 256 along the last axis.

    Unsigned, a positive value never becomes 0: a second moment of 0 under a first moment that is not would divide by eps.
    Shapes: x float32 [..., D]; codes uint8 [..., D]; scale float32 [..., K].
    """
    blocks = _blocks(x)  # [..., K, 256]
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    codes = _nearest(blocks / jnp.where(scale > 0, scale, 1.0)[..., None], signed=signed)
    return codes.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]], scale


def decode(codes: jax.Array, scale: jax.Array, *, signed: bool) -> jax.Array:
    """code value · scale of its block, float32. Shapes as in `encode`."""
    values = jnp.asarray(SIGNED if signed else UNSIGNED)[_blocks(codes).astype(jnp.int32)] * scale[..., None]
    return values.reshape(*codes.shape[:-1], -1)[..., : codes.shape[-1]]


def _blocks(x: jax.Array) -> jax.Array:
    """[..., D] → [..., K, min(D, 256)], the last block filled up with zeros."""
    width = min(BLOCK, x.shape[-1])
    lacking = -x.shape[-1] % width
    if lacking:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lacking)])
    return x.reshape(*x.shape[:-1], -1, width)


def _nearest(x: jax.Array, *, signed: bool) -> jax.Array:
    """The index in `dynamic_code` of the value nearest to each x in [-1, 1]; among the decades by comparing, inside one by dividing.

    In closed form, since a search by gathering compiles for minutes on a CPU.
    """
    y, first = jnp.abs(x), 0 if signed else 1
    shift, count = jnp.full(x.shape, 1e6, jnp.float32), jnp.full(x.shape, 2.0**first, jnp.float32)
    for decade in range(1, 7):
        n = 2.0 ** (decade + first)
        # Halfway between the last value of the decade below (10^-k · (1 - 0.45 / (n / 2))) and the first of this one.
        above = y > 10.0 ** (decade - 7) * (1 + 1.8 / n)
        shift, count = jnp.where(above, 10.0 ** (6 - decade), shift), jnp.where(above, n, count)
    place = jnp.clip(jnp.floor((y * shift - 0.1) / 0.9 * count), 0, count - 1)
    # Numbered from 0 upwards: a decade of n values follows n - 1 smaller ones.
    number = jnp.where(y > 1 - 0.225 / 2.0 ** (6 + first), 128.0 * 2**first, count + place) - first
    if signed:
        number = jnp.where(y > 0.275e-6, number, 0.0)
        return (127 + jnp.sign(x) * number).astype(jnp.uint8)
    return jnp.where(y > 0, number, 0.0).astype(jnp.uint8)


class BlockwiseAdamState(NamedTuple):
    """`mu` and `nu`: uint8 codes in the shape of their parameter, with float32 scales [..., K] beside them; a small leaf is float32, without scale."""

    count: jax.Array
    mu: Any
    nu: Any
    mu_scale: Any
    nu_scale: Any


def scale_by_blockwise_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """m ← b1·D(m) + (1 - b1)·g; v ← b2·D(v) + (1 - b2)·g²; u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps); keep E(m), E(v).

    E and D are `encode` and `decode`, signed for m and unsigned for v. At the first step u is exactly Adam's.
    Source: https://arxiv.org/abs/2110.02861, with blocks of 256 along the last axis in place of 2048 of the flattened leaf.
    """

    def init(params: optax.Params) -> BlockwiseAdamState:
        def codes(p: jax.Array, *, signed: bool) -> jax.Array:
            # The code of 0 is not 0 where there are negative values below it.
            zero = int(np.searchsorted(SIGNED if signed else UNSIGNED, 0.0))
            return jnp.full(p.shape, zero, jnp.uint8) if _is_quantized(p) else jnp.zeros(p.shape, jnp.float32)

        def scale(p: jax.Array) -> jax.Array | None:
            return jnp.zeros((*p.shape[:-1], -(-p.shape[-1] // BLOCK)), jnp.float32) if _is_quantized(p) else None

        mu, nu = (jax.tree.map(lambda p, signed=signed: codes(p, signed=signed), params) for signed in (True, False))
        # Two trees of their own: a state is donated, and one buffer cannot be given away twice.
        return BlockwiseAdamState(jnp.zeros((), jnp.int32), mu, nu, jax.tree.map(scale, params), jax.tree.map(scale, params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple[optax.Updates, BlockwiseAdamState]:
        del params
        assert isinstance(state, BlockwiseAdamState)
        count = optax.safe_increment(state.count)
        adam = _Adam(b1, b2, eps, count)

        def quantized(_: jax.Array, g: jax.Array, mu: jax.Array, nu: jax.Array, mu_scale: jax.Array, nu_scale: jax.Array) -> Arrays:
            u, m, v = adam(g, decode(mu, mu_scale, signed=True), decode(nu, nu_scale, signed=False))
            (mu, mu_scale), (nu, nu_scale) = encode(m, signed=True), encode(v, signed=False)
            return u.astype(g.dtype), mu, nu, mu_scale, nu_scale

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array, mu_scale: jax.Array | None, nu_scale: jax.Array | None) -> tuple[jax.Array | None, ...]:
            if mu_scale is None or nu_scale is None:
                return (*adam(g, mu, nu), None, None)
            return in_slices(quantized, (g, mu, nu, mu_scale, nu_scale))

        return _over_leaves(leaf, updates, count, state)

    return optax.GradientTransformation(init, update)


def scale_by_bfloat16_adam(b1: float, b2: float, eps: float, seed: int) -> optax.GradientTransformation:
    """m ← b1·m + (1 - b1)·g; v ← b2·v + (1 - b2)·g²; u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps); keep R(m), R(v).

    R(x) is one of the two bfloat16 neighbours of x, the nearer the likelier, so that E[R(x)] = x: rounding to nearest would lose every
    contribution below 0.2 % of the moment. The random bits are a function of `seed`, the step and the leaf's place in the tree.
    Source: stochastic rounding as in https://arxiv.org/abs/1502.02551.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        count = optax.safe_increment(state.count)
        adam = _Adam(b1, b2, eps, count)
        keys = iter(jax.random.split(jax.random.fold_in(jax.random.key(seed), state.count), len(jax.tree.leaves(updates))))

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> Arrays:
            key = next(keys)

            def rounded(start: jax.Array, g: jax.Array, mu: jax.Array, nu: jax.Array) -> Arrays:
                u, m, v = adam(g, mu.astype(jnp.float32), nu.astype(jnp.float32))
                bits = jax.random.bits(jax.random.fold_in(key, start), g.shape, jnp.uint32)
                return u.astype(g.dtype), stochastic_bfloat16(m, bits & 0xFFFF), stochastic_bfloat16(v, bits >> 16)

            return in_slices(rounded, (g, mu, nu))

        return _over_leaves(leaf, updates, count, state)

    return optax.GradientTransformation(init, update)


def stochastic_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """The bfloat16 below |x| plus one unit where the 16 bits cut off, plus `bits` (uniform in 0 … 65535), carry over; NaN and infinity stay."""
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
    """function(first row, *slices) → new slices, over all rows of `arrays`, each result in the place of its argument.

    Rows are all axes but the last, flattened. The loop carries the arrays, so XLA updates them where they lie: a scan that returned
    new arrays would hold every one of them twice.
    """
    rows, width = math.prod(arrays[0].shape[:-1]), max(arrays[0].shape[-1:], default=1)
    size = _slice_rows(rows, width)
    flat = tuple(x.reshape(rows, -1) for x in arrays)

    def move(start: jax.Array | int, count: int, carried: Arrays) -> Arrays:
        slices = (jax.lax.dynamic_slice_in_dim(x, start, count, 0) for x in carried)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, new, start, 0) for x, new in zip(carried, function(jnp.asarray(start, jnp.int32), *slices), strict=True)
        )

    if rows <= size:
        done = function(jnp.zeros((), jnp.int32), *flat)
    else:
        done = jax.lax.fori_loop(0, rows // size, lambda i, carried: move(i * size, size, carried), flat)
        if rows % size:
            done = move(rows - rows % size, rows % size, done)
    return tuple(new.reshape(x.shape) for new, x in zip(done, arrays, strict=True))


def _slice_rows(rows: int, width: int) -> int:
    """Rows of a slice: a divisor of `rows` where there is one not much below the most that are wanted, so that no shorter slice is left over."""
    most = max(1, _SLICE // width)
    return next((size for size in range(min(most, rows), most // 4, -1) if rows % size == 0), most)


def _over_leaves(leaf: Callable[..., tuple[Any, ...]], updates: optax.Updates, count: jax.Array, state: Any) -> tuple[optax.Updates, Any]:
    """(new updates, new state) by `leaf` of each update and what the state's trees hold at its place, which may be None."""
    gradients, structure = jax.tree.flatten(updates)
    columns = [structure.flatten_up_to(tree) for tree in state[1:]]
    moved = [leaf(g, *kept) for g, *kept in zip(gradients, *columns, strict=True)]
    trees = [structure.unflatten(column) for column in zip(*moved, strict=True)] if moved else [updates, *state[1:]]
    return trees[0], type(state)(count, *trees[1:])


def _is_quantized(p: jax.Array) -> bool:
    return p.size >= _SMALLEST
