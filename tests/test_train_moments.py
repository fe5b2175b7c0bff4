"""Tests Adam's moments in 8 bits and in bfloat16 against independent numpy code."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from harness.recipe.load import load_recipe
from harness.recipe.schema import Optimizer
from harness.train import moments
from harness.train.moments import (
    decode_first,
    decode_second,
    encode_first,
    encode_second,
    in_slices,
    scale_by_bfloat16_adam,
    scale_by_blockwise_adam,
    stochastic_bfloat16,
)
from harness.train.optimizer import optimizer

B1, B2, EPS = 0.9, 0.95, 1e-8


SHAPES = [(4096,), (3, 256), (5, 300), (2, 7, 72), (4, 1152), (1, 17)]


def blocks_of(x: np.ndarray) -> list[tuple[slice, np.ndarray]]:
    """Where each block of the last axis lies, and the block, in float64."""
    return [
        (slice(start, start + 256), x[..., start : start + 256].astype(np.float64))
        for start in range(0, x.shape[-1], 256)
    ]


def numpy_second(v: np.ndarray) -> np.ndarray:
    """v as it is kept, by the formula, in float64."""
    kept = np.zeros(v.shape)
    for where, block in blocks_of(v):
        scale = block.max(-1, keepdims=True)
        root = np.where(
            block > 0, np.maximum(np.rint(255 * (block / np.where(scale > 0, scale, 1)) ** 0.125), 1), 0
        )
        kept[..., where] = (root / 255) ** 8 * scale
    return kept


def numpy_first(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """m as it is kept beside the kept v."""
    kept, w = np.zeros(m.shape), np.divide(m, np.sqrt(v), out=np.zeros(m.shape), where=v > 0)
    for where, block in blocks_of(w):
        scale = np.abs(block).max(-1, keepdims=True)
        kept[..., where] = np.rint(127 * block / np.where(scale > 0, scale, 1)) / 127 * scale
    return kept * np.sqrt(v)


def spread(shape: tuple[int, ...], low: float, high: float, seed: int = 0) -> np.ndarray:
    """Positive values evenly spread over decades."""
    return (10.0 ** np.random.default_rng(seed).uniform(low, high, shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_second_moment_becomes_the_nearest_code_of_its_block(shape: tuple[int, ...]) -> None:
    v = spread(shape, -12, 2)
    codes, scale = encode_second(jnp.asarray(v))
    assert (codes.dtype, codes.shape, scale.shape) == (
        jnp.uint8,
        shape,
        (*shape[:-1], math.ceil(shape[-1] / 256)),
    )
    back = np.asarray(decode_second(codes, scale))
    for k, (where, block) in enumerate(blocks_of(v)):
        np.testing.assert_array_equal(scale[..., k], v[..., where].max(-1))
        table = (np.arange(256) / 255) ** 8
        places = np.maximum(
            np.abs((block / block.max(-1, keepdims=True))[..., None] ** 0.125 - np.arange(256) / 255).argmin(
                -1
            ),
            1,
        )
        # Halfway between two codes either is right; float32 and float64 may differ there.
        assert (np.abs(np.asarray(codes, np.int64)[..., where] - places) <= 1).all()
        assert (np.asarray(codes)[..., where] == places).mean() > 0.99
        np.testing.assert_allclose(
            back[..., where], table[np.asarray(codes)[..., where]] * block.max(-1, keepdims=True), rtol=1e-5
        )


def test_the_root_of_a_second_moment_is_off_by_what_is_stated() -> None:
    v = spread((64, 256), -19, 0)
    v[:, 0] = 1.0
    codes, scale = encode_second(jnp.asarray(v))
    error = np.abs(np.sqrt(np.asarray(decode_second(codes, scale), np.float64) / v) - 1)
    code = np.asarray(codes, np.float64)
    assert (error <= 1.001 * ((code / (code - 0.5)) ** 4 - 1) + 1e-5).all()  # about 2 / code
    for least, most in ((0.9, 0.008), (1e-4, 0.026), (1e-8, 0.09)):
        assert error[v >= least].max() < most


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_moment_is_kept_in_units_of_the_second_ones_root(shape: tuple[int, ...]) -> None:
    """Off by at most half a code of its block, whatever the size of its own gradients; and never of the other
    sign.
    """
    v = spread(shape, -12, 2)
    w = np.random.default_rng(1).uniform(-1.2, 1.2, shape)
    m = (w * np.sqrt(v)).astype(np.float32)
    codes, scale = encode_first(jnp.asarray(m), jnp.asarray(v))
    assert (codes.dtype, codes.shape, scale.shape) == (
        jnp.int8,
        shape,
        (*shape[:-1], math.ceil(shape[-1] / 256)),
    )
    back = np.asarray(decode_first(codes, scale, jnp.asarray(v)), np.float64)
    for where, block in blocks_of(w):
        largest = np.abs(block).max(-1, keepdims=True)
        assert (np.abs(back / np.sqrt(v))[..., where] <= largest * (1 + 1e-6)).all()
        assert (np.abs(back / np.sqrt(v) - w)[..., where] <= largest / 254 * (1 + 1e-4)).all()
    assert (back * m >= 0).all()


def test_zeros_stay_zeros_and_a_block_knows_nothing_of_another() -> None:
    x = np.zeros((2, 512), np.float32)
    x[0, 300] = 7.0
    codes, scale = encode_second(jnp.asarray(x))
    v = decode_second(codes, scale)
    np.testing.assert_array_equal(v, x)
    np.testing.assert_array_equal(scale, [[0, 7], [0, 0]])
    codes, scale = encode_first(jnp.asarray(x), v)
    np.testing.assert_allclose(decode_first(codes, scale, v), x, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.where(x > 0, 127, 0))


def test_a_positive_second_moment_is_never_stored_as_zero() -> None:
    v = np.full((1, 256), 1e-30, np.float32)
    v[0, 0] = 1.0
    back = np.asarray(decode_second(*encode_second(jnp.asarray(v))))
    assert back[0, 1:].min() == pytest.approx(255.0**-8, rel=1e-5)


def test_all_codes_survive_being_decoded_and_encoded() -> None:
    codes, scale = jnp.arange(256, dtype=jnp.uint8)[None], jnp.full((1, 1), 0.37)
    v = decode_second(codes, scale)
    again, same = encode_second(v)
    np.testing.assert_array_equal(again, codes)
    assert float(same[0, 0]) == pytest.approx(0.37, rel=1e-6)
    signed = jnp.concatenate([jnp.arange(-127, 128, dtype=jnp.int8), jnp.zeros(1, jnp.int8)])[None]
    v = jnp.full((1, 256), 4e-9)
    np.testing.assert_array_equal(encode_first(decode_first(signed, scale, v), v)[0], signed)


def test_no_gradient_however_it_jumps_blows_an_update_up() -> None:
    """Over 20 decades in a block and 9 in time, where codes are coarse: m is kept in units of the v that is
    kept, so neither is lost without the other.
    """
    transform, g = scale_by_blockwise_adam(B1, B2, EPS), spread((8, 640), -18, 3)
    bound = (1 - B1) / math.sqrt((1 - B2) * (1 - B1**2 / B2))
    state = transform.init({"a": jnp.zeros(g.shape)})
    for t in range(1, 30):
        sign, size = (
            np.random.default_rng(t).choice([-1, 1], g.shape),
            10.0 ** np.random.default_rng(t).uniform(-6, 3),
        )
        updates, state = transform.update({"a": jnp.asarray(sign * g * size, jnp.float32)}, state)
        corrections = math.sqrt(1 - B2**t) / (1 - B1**t)
        assert np.isfinite(updates["a"]).all()
        assert np.abs(updates["a"]).max() <= 5 * bound * corrections


def gradients(steps: int, shape: tuple[int, ...] = (8, 640), seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-4, -2, shape)
    return [(size * (0.3 + rng.standard_normal(shape))).astype(np.float32) for _ in range(steps)]


def test_the_update_follows_its_equation_in_numpy() -> None:
    """Three steps: what one step keeps is what the next one reads."""
    transform = scale_by_blockwise_adam(B1, B2, EPS)
    params = {"a": jnp.zeros((8, 640)), "small": jnp.zeros(7)}
    state = transform.init(params)
    assert (state.mu["a"].dtype, state.nu["a"].dtype) == (jnp.int8, jnp.uint8)
    assert state.mu["small"].dtype == jnp.float32
    kept_m = kept_v = np.zeros((8, 640))
    for t, g in enumerate(gradients(3), start=1):
        updates, state = transform.update({"a": jnp.asarray(g), "small": jnp.ones(7)}, state, params)
        m, v = B1 * kept_m + (1 - B1) * g, B2 * kept_v + (1 - B2) * g.astype(np.float64) ** 2
        expected = (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS)
        np.testing.assert_allclose(updates["a"], expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(updates["small"], np.ones(7), rtol=1e-5)
        kept_v = np.asarray(decode_second(state.nu["a"], state.nu_scale["a"]), np.float64)
        kept_m = np.asarray(
            decode_first(state.mu["a"], state.mu_scale["a"], jnp.asarray(kept_v, jnp.float32)), np.float64
        )
        # By the formula, but for a code or two in a thousand that lie halfway.
        assert np.isclose(kept_v, numpy_second(v), rtol=1e-4).mean() > 0.99
        assert np.isclose(kept_m, numpy_first(m, kept_v), rtol=1e-3, atol=1e-12).mean() > 0.99
    assert int(state.count) == 3


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_the_first_update_is_exactly_adams(kind: str) -> None:
    """Nothing has been rounded yet."""
    transform = (
        scale_by_blockwise_adam(B1, B2, EPS)
        if kind == "int8"
        else scale_by_bfloat16_adam(B1, B2, EPS, seed=0)
    )
    (g,) = gradients(1)
    params = {"a": jnp.zeros(g.shape)}
    adam = optax.scale_by_adam(B1, B2, EPS)
    ours, _ = transform.update({"a": jnp.asarray(g)}, transform.init(params), params)
    theirs, _ = adam.update({"a": jnp.asarray(g)}, adam.init(params), params)
    np.testing.assert_allclose(ours["a"], theirs["a"], rtol=1e-6)


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.03), ("bfloat16", 0.01)])
def test_the_error_of_an_update_stays_bounded(kind: str, limit: float) -> None:
    """Forty steps on gradients over two decades: root mean square error of the update relative to Adam's."""
    transform = (
        scale_by_blockwise_adam(B1, B2, EPS)
        if kind == "int8"
        else scale_by_bfloat16_adam(B1, B2, EPS, seed=0)
    )
    adam, params = optax.scale_by_adam(B1, B2, EPS), {"a": jnp.zeros((8, 640))}
    state, exact_state = transform.init(params), adam.init(params)
    update, exact_update = jax.jit(transform.update), jax.jit(adam.update)
    for g in gradients(40):
        ours, state = update({"a": jnp.asarray(g)}, state)
        theirs, exact_state = exact_update({"a": jnp.asarray(g)}, exact_state)
    error = np.asarray(ours["a"]) - np.asarray(theirs["a"])
    assert 0 < np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(np.asarray(theirs["a"]) ** 2)) < limit


@pytest.mark.parametrize("value", [1.0, 1.003, -1.003, 3.14159e-20, -7e30, 0.0])
def test_stochastic_rounding_is_right_on_average(value: float) -> None:
    """Over all 65,536 values of the bits: the mean is the value, and only its two neighbours occur."""
    x = np.float32(value)
    rounded = np.asarray(
        stochastic_bfloat16(jnp.full(65_536, x), jnp.arange(65_536, dtype=jnp.uint32)), np.float64
    )
    assert len(set(rounded)) <= 2
    assert rounded.mean() == pytest.approx(float(x), rel=1e-7)


def test_stochastic_rounding_leaves_what_is_not_finite() -> None:
    out = np.asarray(
        stochastic_bfloat16(jnp.array([jnp.inf, -jnp.inf, jnp.nan]), jnp.full(3, 65_535, jnp.uint32)),
        np.float32,
    )
    assert out[0] == np.inf
    assert out[1] == -np.inf
    assert np.isnan(out[2])


def test_random_rounding_depends_on_seed_step_and_leaf_alone() -> None:
    params = {"a": jnp.zeros((8, 640)), "b": jnp.zeros((8, 640))}
    g = jnp.asarray(gradients(1)[0])

    def moved(seed: int, count: int) -> dict[str, np.ndarray]:
        transform = scale_by_bfloat16_adam(B1, B2, EPS, seed)
        state = transform.init(params)._replace(count=jnp.int32(count))
        return {
            path: np.asarray(x, np.float32)
            for path, x in transform.update({"a": g, "b": g}, state)[1].mu.items()
        }

    one = moved(1, 5)
    np.testing.assert_array_equal(one["a"], moved(1, 5)["a"])
    for other in (moved(2, 5)["a"], moved(1, 6)["a"], one["b"]):
        assert (one["a"] != other).any()


@pytest.mark.parametrize("rows", [1, 4, 6, 7, 13])
def test_slices_cover_every_row_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_SLICE", 4 * 10)
    x, y = jnp.arange(rows * 10.0).reshape(rows, 1, 10), jnp.arange(float(rows)).reshape(rows, 1, 1)
    a, b = jax.jit(lambda x, y: in_slices(lambda _, x, y: (x + y, y + 100), (x, y)))(x, y)
    np.testing.assert_array_equal(a, x + y)
    np.testing.assert_array_equal(b, y + 100)


def test_slicing_does_not_change_8_bit_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, params, (g,) = scale_by_blockwise_adam(B1, B2, EPS), {"a": jnp.zeros((8, 640))}, gradients(1)
    whole = transform.update({"a": jnp.asarray(g)}, transform.init(params))
    monkeypatch.setattr(moments, "_SLICE", 3 * 640)
    for one, other in zip(
        jax.tree.leaves(whole),
        jax.tree.leaves(transform.update({"a": jnp.asarray(g)}, transform.init(params))),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def recipe(kind: str) -> Optimizer:
    return load_recipe(
        "smoke", [f"train.optimizer.moments={kind}", "train.optimizer.weight_decay=0.1"]
    ).train.optimizer


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_the_optimizer_clips_decays_and_schedules_as_with_exact_moments(kind: str) -> None:
    params = {"a/w": jnp.asarray(gradients(1, seed=3)[0]) * 100}
    grads = {"a/w": jnp.asarray(gradients(1)[0]) * 1e4}  # far above clip_norm
    ours, exact = optimizer(recipe(kind), 0), optimizer(recipe("float32"))
    (one, state), (other, _) = (
        ours.update(grads, ours.init(params), params),
        exact.update(grads, exact.init(params), params),
    )
    np.testing.assert_allclose(one["a/w"], other["a/w"], rtol=1e-5)
    bits = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (8, 640)}
    assert bits == ({jnp.dtype("int8"), jnp.dtype("uint8")} if kind == "int8" else {jnp.dtype("bfloat16")})


def test_float32_moments_are_optax_own() -> None:
    exact = optimizer(recipe("float32"))
    settings = recipe("float32")
    state = exact.init({"a/w": jnp.zeros(3)})
    adam = state[1][0]
    assert isinstance(adam, optax.ScaleByAdamState)
    assert settings.moments == "float32"
