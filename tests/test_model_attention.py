"""Tests attention against softmax written out plainly, forward and backward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

from harness.model import attention
from harness.model.attention import attend
from harness.model.remat import Remat, named, rematerialized


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """The same with the axes that a textbook has, each key/value head repeated for its query heads."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.where(mask[:, None], jnp.einsum("btnh,bsnh->bnts", q, k), -1e30)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def asked(keys: int, heads: tuple[int, int], dtype: ArrayLike = jnp.float32) -> tuple[jax.Array, ...]:
    """q [6, 5, N, 4], k and v [6, keys, K, 4], and a mask in which every token sees some keys."""
    rng = np.random.default_rng(keys)
    n, k = heads
    made = (rng.standard_normal((6, length, h, 4)) for length, h in ((5, n), (keys, k), (keys, k)))
    mask = rng.random((6, 5, keys)) < 0.6
    mask[:, :, 0] = True
    return *(jnp.asarray(x, dtype) for x in made), jnp.asarray(mask)


def with_gradients(attend: Any, given: tuple[jax.Array, ...], weights: jax.Array) -> list[np.ndarray]:
    q, k, v, mask = given
    out, back = jax.vjp(lambda *qkv: attend(*qkv, mask), q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *back(weights))]


@pytest.mark.parametrize("heads", [(8, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("keys", [8, 13])
def test_the_result_and_its_gradients_are_those_of_softmax(heads: tuple[int, int], keys: int) -> None:
    given = asked(keys, heads)
    weights = jax.random.normal(jax.random.key(0), given[0].shape)
    expected = with_gradients(plain, given, weights)
    for got, want in zip(with_gradients(attend, given, weights), expected, strict=True):
        # A sum rounds as its largest terms do, also where it comes near to zero; how, the processor decides.
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_bfloat16_is_within_its_rounding() -> None:
    exact = asked(13, (8, 1))
    given = tuple(x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in exact)
    weights = jax.random.normal(jax.random.key(0), exact[0].shape)
    expected = with_gradients(plain, exact, weights)
    for got, want in zip(with_gradients(attend, given, weights.astype(jnp.bfloat16)), expected, strict=True):
        assert np.abs(got - want).max() < 0.03 * np.abs(want).max()


def test_a_row_that_sees_nothing_is_finite_and_what_is_not_seen_has_no_gradient() -> None:
    q, k, v, mask = asked(13, (8, 1))
    mask = mask.at[:, 2].set(False)
    assert np.isfinite(attend(q, k, v, mask)).all()
    hidden = mask.at[:, :, 7].set(False)
    seeing = jnp.ones(q.shape).at[:, 2].set(0.0)
    _, _, of_k, of_v = with_gradients(attend, (q, k, v, hidden), seeing)
    assert not np.any([of_k[:, 7], of_v[:, 7]])
    assert np.all([of_k[:, 6].any(), of_v[:, 6].any()])


@pytest.mark.parametrize(("logits", "piece"), [(1, 1), (2 * 5 * 8 * 2, 2), (2 * 5 * 8 * 5, 3)])
def test_attention_is_cut_into_pieces_and_not_below_one_sample(
    monkeypatch: pytest.MonkeyPatch, logits: int, piece: int
) -> None:
    monkeypatch.setattr(attention, "_PIECE_LOGITS", logits)
    given = asked(5, (2, 1))
    weights = jax.random.normal(jax.random.key(0), given[0].shape)

    def chunked(*given: jax.Array) -> jax.Array:
        return attend(*given, "chunked")

    assert f"tensor<{piece}x1x10x8xf32>" in jax.jit(chunked).lower(*given).as_text()
    whole = with_gradients(attend, given, weights)
    for got, want in zip(with_gradients(chunked, given, weights), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["full", "chunked"])
def test_no_logits_are_kept_for_the_backward_pass(form: attention.AttentionForm) -> None:
    q, k, v, mask = asked(40, (8, 1))
    _, back = jax.vjp(lambda *qkv: attend(*qkv, mask, form), q, k, v)
    kept = [x for x in jax.tree.leaves(back) if hasattr(x, "shape") and x.dtype == jnp.float32]
    assert max(x.size for x in kept) <= max(q.size, k.size)


@pytest.mark.parametrize(("remat", "products"), [("block", 5), ("mlp", 4), ("names", 3), ("none", 3)])
def test_a_level_computes_again_what_it_does_not_keep(remat: Remat, products: int) -> None:
    """Of three products in a row the first is kept from "mlp" on, the second from "names" on; the third is
    needed by no gradient. Each has one gradient, that of what it multiplies.
    """
    w = jnp.ones((4, 4))

    def layer(x: jax.Array) -> jax.Array:
        x = jnp.sin(named(x @ w, "gate"))
        return jnp.sin(named(x @ w, "query")) @ w

    def value(x: jax.Array) -> jax.Array:
        return rematerialized(layer, remat)(x).sum()

    text = str(jax.make_jaxpr(jax.grad(value))(w))
    assert text.count("dot_general") - 3 == products
