"""Two Gemma experts that share one attention.

The language model reads images and prompt; the action expert reads the actions.
Sources: Gemma (https://arxiv.org/abs/2403.08295), π0.5 (https://arxiv.org/abs/2504.16054); openpi
src/openpi/models/gemma.py at commit 15a9616 for the numerics and for every parameter's name. Names of the
second expert end in `_1`.

Axes: L layers, B batch, T query tokens, S key/value tokens, N query heads, K key/value heads, G query heads
per key/value head, D width, H head dim.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from harness.model.attention import AttentionForm, attend
from harness.model.condition import ByToken, Condition
from harness.model.lora import Einsum, FeedForward
from harness.model.remat import ENCODED, KEY_VALUE, QUERY, Remat, named, rematerialized
from harness.recipe.parameters import GEMMA, GemmaSize
from harness.recipe.schema import Expert

_EPSILON = 1e-6

# A function applied to a layer's parameters just before their use, for example to gather their shards.
Fetch = Callable[[Any], Any]

# One entry per expert; None if that expert has no tokens in this call.
PerExpert = tuple[jax.Array | None, jax.Array | None]


class KeyValues(NamedTuple):
    """Rotated keys and values of a prefix, [L, B, S, K, H] each."""

    k: jax.Array
    v: jax.Array


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + 1e-6) * (1 + scale), in float32."""

    def __init__(self, *shape: int) -> None:
        self.scale = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: jax.Array, _condition: Condition | None = None) -> tuple[jax.Array, None]:
        return (_unit_rms(x) * (1 + self.scale)).astype(x.dtype), None


class Modulation(nnx.Module):
    """condition·kernel + bias → scale, shift and gate, [B, 3D]; all zero at first: the norm starts plain."""

    def __init__(self, *shape: int) -> None:
        *layers, width = shape
        self.kernel = nnx.Param(jnp.zeros((*layers, width, 3 * width)))
        self.bias = nnx.Param(jnp.zeros((*layers, 3 * width)))

    def __call__(self, condition: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return condition.astype(dtype) @ self.kernel.astype(dtype) + self.bias.astype(dtype)


class AdaptiveRMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale) + shift, and a residual gate, all from the time embedding (adaRMS)."""

    def __init__(self, *shape: int) -> None:
        self.Dense_0 = Modulation(*shape)

    def __call__(self, x: jax.Array, condition: Condition) -> tuple[jax.Array, jax.Array]:
        scale, shift, gate = jnp.split(
            self._modulation(condition, x.dtype), 3, axis=-1
        )  # [B, 1, D] each; [B, T, D] if the tokens differ
        return (_unit_rms(x) * (1 + scale) + shift).astype(x.dtype), gate

    def _modulation(self, condition: Condition, dtype: jnp.dtype) -> jax.Array:
        if not isinstance(condition, ByToken):
            return self.Dense_0(condition, dtype)[:, None, :]
        # Both times are modulated and then chosen from: two rows a sample instead of one a token. A token
        # that is not given has the same modulation, as without any given ones.
        own, clean = (self.Dense_0(each, dtype)[:, None, :] for each in (condition.own, condition.clean))
        return jnp.where(condition.given[:, :, None], clean, own)


def _unit_rms(x: jax.Array) -> jax.Array:
    variance = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jnp.reciprocal(jnp.sqrt(variance + _EPSILON))


def apply_rope(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864), wavelengths up to 10,000.

    Shapes: x [B, T, N, H]; positions [B, T].
    """
    half = x.shape[-1] // 2
    timescale = 10_000 ** ((2.0 / x.shape[-1]) * jnp.arange(half, dtype=jnp.float32))
    radians = (positions[..., None] / timescale)[..., None, :]  # [B, T, 1, H/2]
    sin, cos = jnp.sin(radians), jnp.cos(radians)
    # [x1·cos - x2·sin, x2·cos + x1·sin], with both halves side by side: nothing is cut and joined.
    halves, signs = x.reshape(*x.shape[:-1], 2, half), jnp.asarray([[-1.0], [1.0]])
    turned = jnp.flip(halves, -2) * (sin[..., None, :] * signs)
    return (halves * cos[..., None, :] + turned).reshape(x.shape).astype(x.dtype)


class Attention(nnx.Module):
    """Attention of both experts: separate projections, joint attention, separate output projections."""

    def __init__(self, experts: tuple[Expert, Expert], form: AttentionForm, rngs: nnx.Rngs) -> None:
        self.form = form
        for suffix, expert in zip(("", "_1"), experts, strict=True):
            s = GEMMA[expert.variant]
            make = {"layers": s.depth, "lora": expert.lora, "rngs": rngs}
            setattr(
                self,
                f"q_einsum{suffix}",
                Einsum(shape=(s.heads, s.width, s.head_dim), in_axis=-2, batch_axes=1, **make),
            )
            setattr(
                self,
                f"kv_einsum{suffix}",
                Einsum(shape=(2, s.kv_heads, s.width, s.head_dim), in_axis=-2, batch_axes=2, **make),
            )
            setattr(
                self,
                f"attn_vec_einsum{suffix}",
                Einsum(shape=(s.heads, s.head_dim, s.width), in_axis=(-3, -2), batch_axes=0, **make),
            )
        self.query_scale = GEMMA[experts[0].variant].head_dim ** -0.5

    def __call__(
        self, xs: PerExpert, positions: jax.Array, mask: jax.Array, cache: KeyValues | None, *, last: bool
    ) -> tuple[PerExpert, KeyValues]:
        """(each expert's result, the keys and values).

        With `last`, the language model's tokens are only keys and values. They have no queries, and their
        result is None. The language model's tokens see no others, whatever `mask` says of those.
        """
        present = [(suffix, x) for suffix, x in zip(("", "_1"), xs, strict=True) if x is not None]
        ends = list(itertools.accumulate(x.shape[1] for _, x in present))
        spans = [slice(end - x.shape[1], end) for end, (_, x) in zip(ends, present, strict=True)]
        pairs = [
            self._keys_values(suffix, x, positions[:, span])
            for span, (suffix, x) in zip(spans, present, strict=True)
        ]
        joined = KeyValues(*map(_joined, zip(*([cache] if cache is not None else []), *pairs, strict=True)))
        outputs: dict[str, jax.Array | None] = {"": None, "_1": None}
        for span, (suffix, x) in zip(spans, present, strict=True):
            if last and not suffix:
                continue
            # The prefix sees no action, so it does not ask for the keys of the actions.
            seen = joined if suffix else pairs[0]
            asked = mask[:, span, : seen.k.shape[1]]
            outputs[suffix] = self._attended(suffix, x, positions[:, span], seen, asked)
        return (outputs[""], outputs["_1"]), joined

    def _keys_values(self, suffix: str, x: jax.Array, positions: jax.Array) -> KeyValues:
        k, v = named(getattr(self, f"kv_einsum{suffix}")("BSD,CKDH->CBSKH", x), KEY_VALUE)
        return KeyValues(apply_rope(k, positions), v)

    def _attended(
        self, suffix: str, x: jax.Array, positions: jax.Array, seen: KeyValues, mask: jax.Array
    ) -> jax.Array:
        q = apply_rope(getattr(self, f"q_einsum{suffix}")("BTD,NDH->BTNH", x), positions)
        q = named(q * jnp.asarray(self.query_scale, q.dtype), QUERY)
        encoded = named(attend(q, *seen, mask, self.form), ENCODED)
        out: jax.Array = getattr(self, f"attn_vec_einsum{suffix}")("BTNH,NHD->BTD", encoded)
        return out


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


class Block(nnx.Module):
    """Attention and feed-forward, each after a norm; adaRMS gates the action expert's residual branches."""

    def __init__(self, experts: tuple[Expert, Expert], attention: AttentionForm, rngs: nnx.Rngs) -> None:
        self.attn = Attention(experts, attention, rngs)
        for suffix, expert in zip(("", "_1"), experts, strict=True):
            s = GEMMA[expert.variant]
            norm = AdaptiveRMSNorm if suffix else RMSNorm
            setattr(self, f"pre_attention_norm{suffix}", norm(s.depth, s.width))
            setattr(self, f"pre_ffw_norm{suffix}", norm(s.depth, s.width))
            setattr(
                self, f"mlp{suffix}", FeedForward(s.depth, s.width, s.mlp_dim, lora=expert.lora, rngs=rngs)
            )

    def __call__(
        self,
        xs: PerExpert,
        positions: jax.Array,
        mask: jax.Array,
        condition: Condition | None,
        cache: KeyValues | None,
        *,
        last: bool = False,
    ) -> tuple[PerExpert, KeyValues]:
        """(the tokens after this layer, its keys and values).

        After the `last` layer nothing reads the language model's tokens, so they are None.
        """
        normed, gates = self._norm("pre_attention_norm", xs, condition)
        attended, kv = self.attn(normed, positions, mask, cache, last=last)
        xs = _residual((None, xs[1]) if last else xs, attended, gates)
        normed, gates = self._norm("pre_ffw_norm", xs, condition)
        fed = tuple(
            None if x is None else getattr(self, f"mlp{suffix}")(x)
            for suffix, x in zip(("", "_1"), normed, strict=True)
        )
        return _residual(xs, (fed[0], fed[1]), gates), kv

    def _norm(self, name: str, xs: PerExpert, condition: Condition | None) -> tuple[PerExpert, PerExpert]:
        pairs = [
            (None, None) if x is None else getattr(self, name + suffix)(x, condition)
            for suffix, x in zip(("", "_1"), xs, strict=True)
        ]
        return (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])


def _residual(xs: PerExpert, ys: PerExpert, gates: PerExpert) -> PerExpert:
    def add(x: jax.Array | None, y: jax.Array | None, gate: jax.Array | None) -> jax.Array | None:
        if x is None or y is None:
            return None
        return x + y if gate is None else x + y * gate

    return add(xs[0], ys[0], gates[0]), add(xs[1], ys[1], gates[1])


class Embedder(nnx.Module):
    """Token ids → embeddings, scaled by sqrt(D)."""

    def __init__(self, vocab_size: int, width: int, rngs: nnx.Rngs) -> None:
        self.input_embedding = nnx.Param(nnx.initializers.normal()(rngs.params(), (vocab_size, width)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.input_embedding[tokens].astype(
            self.input_embedding.dtype
        )  # the rows of a quantized table become dense here
        return x * jnp.sqrt(x.shape[-1]).astype(x.dtype)


class Gemma(nnx.Module):
    """All layers of both experts, as one scan over the layer axis."""

    def __init__(
        self,
        experts: tuple[Expert, Expert],
        vocab_size: int,
        *,
        dtype: jnp.dtype,
        remat: Remat,
        attention: AttentionForm,
        fetch: Fetch,
        rngs: nnx.Rngs,
    ) -> None:
        sizes: list[GemmaSize] = [GEMMA[expert.variant] for expert in experts]
        self.embedder = Embedder(vocab_size, sizes[0].width, rngs)
        self.layers = Block(experts, attention, rngs)
        self.final_norm = RMSNorm(sizes[0].width)
        self.final_norm_1 = AdaptiveRMSNorm(sizes[1].width)
        self.dtype = dtype
        self.remat = remat
        self.fetch = fetch

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Prompt tokens int32 [B, T] → [B, T, D] in the compute type."""
        return self.embedder(tokens).astype(self.dtype)

    def prefix(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> KeyValues:
        """Keys and values of every layer for a prefix, which only the language model reads."""
        _, kv = self._scan((x.astype(self.dtype), None), positions, mask, None, None, keep=True)
        assert kv is not None
        return kv

    def actions(
        self,
        prefix: jax.Array | None,
        suffix: jax.Array,
        *,
        positions: jax.Array,
        mask: jax.Array,
        condition: Condition,
        cache: KeyValues | None = None,
    ) -> jax.Array:
        """The action expert's output [B, suffix tokens, D_1], from the prefix or its cached keys, values."""
        xs = (None if prefix is None else prefix.astype(self.dtype), suffix.astype(self.dtype))
        (_, x), _ = self._scan(xs, positions, mask, condition, cache, keep=False)
        assert x is not None
        return self.final_norm_1(x, condition)[0]

    def _scan(
        self,
        xs: PerExpert,
        positions: jax.Array,
        mask: jax.Array,
        condition: Condition | None,
        cache: KeyValues | None,
        *,
        keep: bool,
    ) -> tuple[PerExpert, KeyValues | None]:
        """All layers but the last as one loop, then the last layer.

        Of the last layer only what the action head reads is computed; with `keep`, all of it.
        """
        graph, stacked = nnx.split(self.layers)
        depth = jax.tree.leaves(stacked)[0].shape[0]

        def layer(xs: PerExpert, i: jax.Array | int, *, last: bool) -> tuple[PerExpert, KeyValues | None]:
            # Indexed from the whole stack. A slice of the stack, or a stack without its last layer, would be
            # a second copy of the parameters.
            one, cached = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), (stacked, cache)
            )
            xs, kv = nnx.merge(graph, self.fetch(one))(xs, positions, mask, condition, cached, last=last)
            return xs, kv if keep else None

        def step(last: bool) -> Callable[[PerExpert, jax.Array | int], tuple[PerExpert, KeyValues | None]]:
            one = functools.partial(layer, last=last)
            return rematerialized(one, self.remat)

        shortened = 0 if keep or xs[0] is None else 1
        xs, kv = jax.lax.scan(step(last=False), xs, jnp.arange(depth - shortened))
        return step(last=True)(xs, depth - 1) if shortened else (xs, kv)
