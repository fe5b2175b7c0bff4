"""The program that serves: images as bytes, a prompt and noise in, a chunk of normalized actions out.

It computes what `Pi05.sample_actions` computes, written for the latency of one call. Layers are separate
arrays and a Python loop, so no weight is copied out of a stack. The Euler steps are unrolled. The adaptive
norms of their fixed times were computed when the weights were loaded. The last layer of the prefix makes keys
and values alone. Actions and prompt are padded once to a multiple of 8, so that no kernel pads.

A row of the batch never meets another: every sum runs over its own tokens, channels or keys.

Some lines only steer XLA towards fewer kernels. `optimization_barrier` around arrays of one shape makes one
kernel write them all. Counts and bytes: benchmarks/serve_program.py. The numerics are those of
harness/model/, with which the tests compare.

Axes: B rows, C cameras, P patches of an image, T prompt tokens, S prefix tokens (P·C + T), R action rows (the
horizon, padded), K keys, N query heads, H head dim, D width, F mlp dim, E action dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from harness.serve.attention import Turn, asked_of, attention, attention_of_rows, turn_of, turned
from harness.serve.lengths import Kernels
from harness.serve.vision import VisionArrays, image_tokens

# The norms' epsilon: that of harness/model/gemma.py.
_EPSILON = 1e-6
# cuBLAS takes bfloat16 products whose sizes are multiples of 8; XLA pads others by a kernel each.
UNIT = 8

Cache = list[tuple[jax.Array, jax.Array]]
Modulations: TypeAlias = Sequence[jax.Array] | jax.Array
ByRow = Callable[[Modulations], Modulations]


class Layer(NamedTuple):
    """One layer of one expert, as its products take it.

    Shapes: qkv [D, (N + 2)·H], queries first, then the key, then the value; out [N·H, D]; gate_up [D, 2·F],
    gates first; down [F, D].
    """

    qkv: jax.Array
    out: jax.Array
    gate_up: jax.Array
    down: jax.Array


class Norms(NamedTuple):
    """The scales of a layer of the language model, [D] each."""

    attention: jax.Array
    feed_forward: jax.Array


class Language(NamedTuple):
    """The language model: its table [V, D], all layers but the last, and of the last what the cache needs.

    `last` makes only key and value, [D, 2·H].
    """

    table: jax.Array
    layers: Sequence[Layer]
    norms: Sequence[Norms]
    last: jax.Array
    last_norm: jax.Array


class Expert(NamedTuple):
    """The action expert.

    Shapes: modulations [steps, 2·L + 1, 3, D], of each Euler step: scale, shift and gate of the norm before
    attention and of that before the feed-forward, layer by layer, then of the final norm; in_kernel [E, D];
    out_kernel [D, E] and its bias, both times the length of a step.
    """

    layers: Sequence[Layer]
    modulations: jax.Array
    in_kernel: jax.Array
    in_bias: jax.Array
    out_kernel: jax.Array
    out_bias: jax.Array


class Arrays(NamedTuple):
    """Everything that the program reads of a checkpoint."""

    vision: VisionArrays
    language: Language
    expert: Expert


class Sizes(NamedTuple):
    """What is fixed when the program is compiled, beside the shapes of its arrays.

    `kernels`: how the action rows attend (`harness.serve.kernels`).
    """

    patch: int
    vision_heads: int
    head_dim: int
    horizon: int
    dtype: jnp.dtype
    kernels: Kernels = "none"


class Call(NamedTuple):
    """The inputs of a call.

    Shapes: images uint8 [B, C, S, S, 3]; camera_mask bool [B, C]; tokens int32 [B, T]; token_mask bool [B,
    T]; noise float32 [B, R, E], rows from the horizon on unread.
    """

    images: jax.Array
    camera_mask: jax.Array
    tokens: jax.Array
    token_mask: jax.Array
    noise: jax.Array


class Seen(NamedTuple):
    """What the action expert reads of an observation, at every Euler step.

    Shapes: cache [B, S, H] a key and a value of each layer; turn of the action rows; keys bool [B, 1, K],
    which of the prefix tokens and action rows are real.
    """

    cache: Cache
    turn: Turn
    keys: jax.Array


def padded(length: int) -> int:
    """The next multiple of 8."""
    return -(-length // UNIT) * UNIT


def act(arrays: Arrays, sizes: Sizes, call: Call) -> jax.Array:
    """Actions float32 [B, R, E] by as many Euler steps as there are modulations; the first `horizon` count.

    T and R are multiples of 8. Rows beyond the horizon hold nothing of meaning.
    """
    seen = observed(arrays, sizes, call)
    x = call.noise
    for step in range(arrays.expert.modulations.shape[0]):
        x = x + change(arrays.expert, sizes, seen, x, step)
    return x


def observed(arrays: Arrays, sizes: Sizes, call: Call) -> Seen:
    """The prefix of a call, computed once."""
    b, r, _ = call.noise.shape
    seen = image_tokens(arrays.vision, sizes, call.images)  # [B, P·C, D], patch by patch
    x = jnp.concatenate([seen, _embed(arrays.language.table, call.tokens).astype(sizes.dtype)], axis=1)
    patches = seen.shape[1] // call.images.shape[1]
    real, positions = _counted(call, patches, r)
    acting = jnp.broadcast_to(jnp.arange(r) < sizes.horizon, (b, r))
    keys = jnp.concatenate([real, acting], axis=1)[:, None]  # [B, 1, K]
    turn = turn_of(positions, sizes.head_dim)
    keys, turn = jax.lax.optimization_barrier((keys, turn))
    s = x.shape[1]
    cache = _prefix(arrays.language, sizes, x, Turn(turn.sin[:, :s], turn.cos[:, :s]), keys[..., :s])
    return Seen(cache, Turn(turn.sin[:, s:], turn.cos[:, s:]), keys)


def _counted(call: Call, patches: int, rows: int) -> tuple[jax.Array, jax.Array]:
    """(which prefix tokens are real [B, S], the position of each token and action row [B, S + R]).

    Real tokens are counted camera by camera, then along the prompt, as in training; the order in which they
    lie in the prefix does not matter.
    """
    cameras, prompt = call.camera_mask.astype(jnp.int32), call.token_mask.astype(jnp.int32)
    b = prompt.shape[0]
    before = patches * (jnp.cumsum(cameras, axis=1) - cameras)  # [B, C]
    images = (before[:, None] + jnp.arange(patches)[None, :, None]).reshape(b, -1)
    shown = patches * cameras.sum(axis=1, keepdims=True)
    tokens = shown + jnp.cumsum(prompt, axis=1) - 1
    actions = shown + prompt.sum(axis=1, keepdims=True) + jnp.arange(rows)
    real = jnp.broadcast_to(call.camera_mask[:, None], (b, patches, cameras.shape[1])).reshape(b, -1)
    return (
        jnp.concatenate([real, call.token_mask], axis=1),
        jnp.concatenate([images, tokens, actions], axis=1),
    )


def _embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    x = table[tokens]
    return x * jnp.sqrt(x.shape[-1]).astype(x.dtype)


def _unit_rms(x: jax.Array) -> jax.Array:
    variance = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jnp.reciprocal(jnp.sqrt(variance + _EPSILON))


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    return (_unit_rms(x) * (1 + scale)).astype(x.dtype)


def _modulated(x: jax.Array, modulation: jax.Array) -> jax.Array:
    """The adaptive norm of `x` [B, R, D]; modulation [3, D] or [3, B, R, D]."""
    return (_unit_rms(x) * (1 + modulation[0]) + modulation[1]).astype(x.dtype)


def _heads(x: jax.Array, layer: Layer, sizes: Sizes) -> jax.Array:
    """Queries, key and value of `x` [B, T, D], not rotated, [B, T, N + 2, H]."""
    return (x @ layer.qkv).reshape(*x.shape[:2], -1, sizes.head_dim)


def _fed(x: jax.Array, layer: Layer) -> jax.Array:
    """(gelu(x·gate) * (x·up))·down."""
    gate, up = jnp.split(x @ layer.gate_up, 2, axis=-1)
    return (jax.nn.gelu(gate) * up) @ layer.down


def _prefix(language: Language, sizes: Sizes, x: jax.Array, turn: Turn, keys: jax.Array) -> Cache:
    """Keys and values [B, S, H] of every layer. The last layer makes nothing else."""
    found: Cache = []
    for layer, norms in zip(language.layers, language.norms, strict=True):
        q, k, v = asked_of(_heads(_normed(x, norms.attention), layer, sizes), turn)
        q, k, v = jax.lax.optimization_barrier((q, k, v))
        found.append((k, v))
        out = attention(q, k, v, keys, q.shape[1]).reshape(*x.shape[:2], -1)
        x = x + out @ layer.out
        x = x + _fed(_normed(x, norms.feed_forward), layer)
    k, v = jnp.split(_normed(x, language.last_norm) @ language.last, 2, axis=-1)
    return [*found, (turned(k[:, :, None], turn)[:, :, 0], v)]


def change(
    expert: Expert, sizes: Sizes, seen: Seen, x: jax.Array, step: int, by_row: ByRow | None = None
) -> jax.Array:
    """What one Euler step adds to `x` [B, R, E]: the velocity times the length of a step.

    `by_row` makes the modulations of rows that differ in their time, [3, B, R, D] of each norm, of those of
    the step, [norms, 3, D].
    """
    entered = (x @ expert.in_kernel + expert.in_bias).astype(sizes.dtype)
    modulations: Modulations = expert.modulations[step]
    out = _decoded(expert, sizes, seen, entered, modulations if by_row is None else by_row(modulations))
    return out.astype(expert.out_kernel.dtype) @ expert.out_kernel + expert.out_bias


def _decoded(expert: Expert, sizes: Sizes, seen: Seen, x: jax.Array, modulations: Modulations) -> jax.Array:
    """The action expert's output [B, R, D] at one step."""
    for i, (layer, prefix) in enumerate(zip(expert.layers, seen.cache, strict=True)):
        before, between = modulations[2 * i], modulations[2 * i + 1]
        heads = _heads(_modulated(x, before), layer, sizes)
        out = attention_of_rows(heads, prefix, seen.turn, seen.keys, kernels=sizes.kernels)
        x = x + (out @ layer.out) * before[2]
        gate, up = jnp.split(_modulated(x, between) @ layer.gate_up, 2, axis=-1)
        hidden = jax.nn.gelu(gate) * up
        if i % 2 == 1:
            hidden, x = _kept(hidden, gate, x)
        x = x + (hidden @ layer.down) * between[2]
    return _modulated(x, modulations[-1])


def _kept(hidden: jax.Array, gate: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(hidden [B, R, F]; x [B, R, D]): one kernel writes them, F being no less than D.

    The norms add up the residuals anew, as far back as x was last written, and XLA soon writes x by a kernel
    of its own. To share the kernel of `hidden`, the array of x has its shape and reads what it reads.
    """
    d = x.shape[-1]
    longer = jnp.pad(x, ((0, 0), (0, 0), (0, hidden.shape[-1] - d)))
    hidden, longer = jax.lax.optimization_barrier(
        (hidden, jnp.where(jnp.arange(hidden.shape[-1]) < d, longer, gate))
    )
    return hidden, longer[..., :d]
