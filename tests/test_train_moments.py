"""Adam's moments in 8 bits and in bfloat16, against numpy written independently of the transformations."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from harness.recipe import Optimizer, load_recipe
from harness.train import moments
from harness.train.moments import (
    SIGNED,
    UNSIGNED,
    decode,
    dynamic_code,
    encode,
    in_slices,
    scale_by_bfloat16_adam,
    scale_by_blockwise_adam,
    stochastic_bfloat16,
)
from harness.train.optimizer import optimizer

B1, B2, EPS = 0.9, 0.95, 1e-8


def nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Index of the nearest entry by trying all of them."""
    return np.abs(x[..., None].astype(np.float64) - table.astype(np.float64)).argmin(-1)


@pytest.mark.parametrize(("signed", "lowest", "second", "highest_but_one"), [(True, -0.99296875, 0.55e-6, 0.99296875), (False, 0.0, 3.25e-7, 0.996484375)])
def test_the_code_is_that_of_the_paper(signed: bool, lowest: float, second: float, highest_but_one: float) -> None:
    """Ends and smallest values computed by hand from the intervals."""
    code = dynamic_code(signed=signed)
    assert code.shape == (256,)
    assert len(np.unique(code)) == 256
    assert code[-1] == 1.0
    assert code[-2] == pytest.approx(highest_but_one, rel=1e-6)
    assert code[0] == pytest.approx(lowest, rel=1e-6)
    assert code[code > 0][0] == pytest.approx(second, rel=1e-6)
    assert 0.0 in code
    for decade in range(7):  # each decade has half the values of the one above
        inside = (code > 10.0 ** (-7 + decade)) & (code < 10.0 ** (-6 + decade))
        assert inside.sum() == 2 ** (decade + (not signed))


@pytest.mark.parametrize("shape", [(4096,), (3, 256), (5, 300), (2, 7, 72), (4, 1152), (1, 17)])
@pytest.mark.parametrize("signed", [True, False])
def test_each_value_becomes_the_nearest_code_of_its_block(shape: tuple[int, ...], signed: bool) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 2, shape)).astype(np.float32)
    x = x if signed else np.abs(x)
    codes, scale = (np.asarray(part) for part in encode(jnp.asarray(x), signed=signed))
    assert codes.dtype == np.uint8
    assert codes.shape == shape
    back = np.asarray(decode(jnp.asarray(codes), jnp.asarray(scale), signed=signed))
    table = SIGNED if signed else UNSIGNED
    for k in range(math.ceil(shape[-1] / 256)):
        block = x[..., 256 * k : 256 * (k + 1)]
        absmax = np.abs(block).max(-1)
        np.testing.assert_array_equal(scale[..., k], absmax)
        wanted = nearest(block / absmax[..., None], table)
        if not signed:
            wanted = np.maximum(wanted, 1)  # a positive second moment stays positive
        got = codes[..., 256 * k : 256 * (k + 1)]
        # Halfway between two values either is right; float32 and float64 may differ there.
        tie = np.isclose(np.abs(block / absmax[..., None] - table[got]), np.abs(block / absmax[..., None] - table[wanted]), rtol=1e-5)
        assert ((got == wanted) | tie).all()
        np.testing.assert_array_equal(back[..., 256 * k : 256 * (k + 1)], table[got] * absmax[..., None])


def test_zeros_stay_zeros_and_a_block_knows_nothing_of_another() -> None:
    x = np.zeros((2, 512), np.float32)
    x[0, 300] = 7.0
    for signed in (True, False):
        codes, scale = encode(jnp.asarray(x), signed=signed)
        np.testing.assert_array_equal(decode(codes, scale, signed=signed), x)
        np.testing.assert_array_equal(scale, [[0, 7], [0, 0]])


def test_a_positive_second_moment_is_never_stored_as_zero() -> None:
    x = np.full((1, 256), 1e-20, np.float32)
    x[0, 0] = 1.0
    back = np.asarray(decode(*encode(jnp.asarray(x), signed=False), signed=False))
    assert back[0, 1:].min() == np.float32(3.25e-7)


def test_all_codes_survive_being_decoded_and_encoded() -> None:
    for signed in (True, False):
        codes = jnp.arange(256, dtype=jnp.uint8)[None]
        again, scale = encode(decode(codes, jnp.full((1, 1), 0.37), signed=signed), signed=signed)
        np.testing.assert_array_equal(again, codes)
        assert float(scale[0, 0]) == np.float32(0.37)


def gradients(steps: int, shape: tuple[int, ...] = (8, 640), seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-4, -2, shape)
    return [(size * (0.3 + rng.standard_normal(shape))).astype(np.float32) for _ in range(steps)]


def test_the_update_follows_its_equation_in_numpy() -> None:
    """Three steps: what one step keeps is what the next one reads."""
    transform = scale_by_blockwise_adam(B1, B2, EPS)
    params = {"a": jnp.zeros((8, 640)), "small": jnp.zeros(7)}
    state = transform.init(params)
    assert state.mu["a"].dtype == jnp.uint8
    assert state.mu["small"].dtype == jnp.float32
    kept = {"m": np.zeros((8, 640), np.float32), "v": np.zeros((8, 640), np.float32)}
    for t, g in enumerate(gradients(3), start=1):
        updates, state = transform.update({"a": jnp.asarray(g), "small": jnp.ones(7)}, state, params)
        m, v = B1 * kept["m"] + (1 - B1) * g, B2 * kept["v"] + (1 - B2) * g.astype(np.float64) ** 2
        expected = (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS)
        np.testing.assert_allclose(updates["a"], expected, rtol=2e-5)
        np.testing.assert_allclose(updates["small"], np.ones(7), rtol=1e-5)
        kept["m"] = np.asarray(decode(state.mu["a"], state.mu_scale["a"], signed=True))
        kept["v"] = np.asarray(decode(state.nu["a"], state.nu_scale["a"], signed=False))
        # Half a step of the code is 0.007 of a block's largest value (0.0035 unsigned) in the highest decade.
        for name, exact, scale, half in (("m", m, state.mu_scale, 0.0071), ("v", v, state.nu_scale, 0.0036)):
            largest = np.repeat(np.asarray(scale["a"]), 256, axis=1)[:, :640]
            assert (np.abs(kept[name] - exact) <= half * largest).all()
    assert int(state.count) == 3


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_the_first_update_is_exactly_adams(kind: str) -> None:
    """Nothing has been rounded yet."""
    transform = scale_by_blockwise_adam(B1, B2, EPS) if kind == "int8" else scale_by_bfloat16_adam(B1, B2, EPS, seed=0)
    (g,) = gradients(1)
    params = {"a": jnp.zeros(g.shape)}
    adam = optax.scale_by_adam(B1, B2, EPS)
    ours, _ = transform.update({"a": jnp.asarray(g)}, transform.init(params), params)
    theirs, _ = adam.update({"a": jnp.asarray(g)}, adam.init(params), params)
    np.testing.assert_allclose(ours["a"], theirs["a"], rtol=1e-6)


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.1), ("bfloat16", 0.01)])
def test_the_error_of_an_update_stays_bounded(kind: str, limit: float) -> None:
    """Forty steps on gradients over two decades: root mean square error of the update relative to Adam's."""
    transform = scale_by_blockwise_adam(B1, B2, EPS) if kind == "int8" else scale_by_bfloat16_adam(B1, B2, EPS, seed=0)
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
    rounded = np.asarray(stochastic_bfloat16(jnp.full(65_536, x), jnp.arange(65_536, dtype=jnp.uint32)), np.float64)
    assert len(set(rounded)) <= 2
    assert rounded.mean() == pytest.approx(float(x), rel=1e-7)


def test_stochastic_rounding_leaves_what_is_not_finite() -> None:
    out = np.asarray(stochastic_bfloat16(jnp.array([jnp.inf, -jnp.inf, jnp.nan]), jnp.full(3, 65_535, jnp.uint32)), np.float32)
    assert out[0] == np.inf
    assert out[1] == -np.inf
    assert np.isnan(out[2])


def test_random_rounding_depends_on_seed_step_and_leaf_alone() -> None:
    params = {"a": jnp.zeros((8, 640)), "b": jnp.zeros((8, 640))}
    g = jnp.asarray(gradients(1)[0])

    def moved(seed: int, count: int) -> dict[str, np.ndarray]:
        transform = scale_by_bfloat16_adam(B1, B2, EPS, seed)
        state = transform.init(params)._replace(count=jnp.int32(count))
        return {path: np.asarray(x, np.float32) for path, x in transform.update({"a": g, "b": g}, state)[1].mu.items()}

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
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(transform.update({"a": jnp.asarray(g)}, transform.init(params))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def recipe(kind: str) -> Optimizer:
    return load_recipe("smoke", [f"train.optimizer.moments={kind}", "train.optimizer.weight_decay=0.1"]).train.optimizer


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_the_optimizer_clips_decays_and_schedules_as_with_exact_moments(kind: str) -> None:
    params = {"a/w": jnp.asarray(gradients(1, seed=3)[0]) * 100}
    grads = {"a/w": jnp.asarray(gradients(1)[0]) * 1e4}  # far above clip_norm
    ours, exact = optimizer(recipe(kind), 0), optimizer(recipe("float32"))
    (one, state), (other, _) = ours.update(grads, ours.init(params), params), exact.update(grads, exact.init(params), params)
    np.testing.assert_allclose(one["a/w"], other["a/w"], rtol=1e-5)
    bits = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (8, 640)}
    assert bits == {jnp.dtype("uint8" if kind == "int8" else "bfloat16")}


def test_float32_moments_are_optax_own() -> None:
    exact = optimizer(recipe("float32"))
    settings = recipe("float32")
    state = exact.init({"a/w": jnp.zeros(3)})
    adam = state[1][0]
    assert isinstance(adam, optax.ScaleByAdamState)
    assert settings.moments == "float32"
