"""Tests laws of the approximate levers in a whole training step.

A resume is bitwise equal, the average keeps its equation, and codes never move.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.checkpoint.inspect import inspect
from harness.checkpoint.store import Store
from harness.checkpoint.weights import load_params
from harness.model.quantize import Quantized
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.train import host, update
from harness.train.optimizer import optimizer
from harness.train.setup import keeper, setup_of
from harness.train.sharding import Layout
from harness.train.snapshot import restore, save
from harness.train.start import first_state
from harness.train.state import TrainState, abstract_params, abstract_state, state_from
from harness.train.step import make_step
from harness.train.update import averaged
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.tiny import LORA, random_batch, random_params, tiny

SMALL = ["model.vocab_size=64", "train.global_batch=2"]
LEVERS = {
    "8-bit moments, 4-bit kernels, average every 2 steps": [
        "train.optimizer.moments=int8",
        "train.frozen=int4",
        "train.ema_decay=0.9",
        "train.ema_every_steps=2",
    ],
    "bfloat16 moments, 8-bit kernels": [
        "train.optimizer.moments=bfloat16",
        "train.frozen=int8",
        "train.ema_decay=null",
    ],
}


def start(recipe: Recipe) -> TrainState:
    return jax.jit(lambda params: state_from(params, recipe))(
        {path: jnp.asarray(value) for path, value in random_params(recipe).items()}
    )


def run(step, state: TrainState, recipe: Recipe, steps: range) -> TrainState:  # type: ignore[no-untyped-def]
    for i in steps:
        state, _ = step(state, random_batch(recipe, batch=2, seed=i), jax.random.key(5))
    return state


def assert_same(one: object, other: object) -> None:
    leaves = jax.tree.leaves(one), jax.tree.leaves(other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*leaves, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("lever", list(LEVERS))
def test_resume_is_bitwise_and_the_checkpoint_is_openpis(lever: str, tmp_path: Path) -> None:
    recipe = tiny(*SMALL, "train.trained=action_expert", *LEVERS[lever])
    setup = setup_of(recipe, Layout(jax.devices()[:1]))
    places = setup.layout.of(setup.shapes.state)
    step, begun = (
        jax.jit(make_step(recipe), out_shardings=(places, None)),
        jax.device_put(start(recipe), places),
    )
    state = run(step, begun, recipe, range(1))
    whole = run(step, state, recipe, range(1, 3))
    assert {str(x.dtype) for x in jax.tree.leaves(state.opt_state)} >= {
        "uint8" if "8-bit moments" in lever else "bfloat16"
    }
    assert any(isinstance(x, Quantized) for x in state.frozen.values())
    store = Store(tmp_path, keep_every_steps=10)
    save(
        store,
        state,
        step=1,
        norm_stats_json="{}",
        asset_id="a",
        record={"recipe_sha256": recipe.sha256(), "recipe": recipe.model_dump(mode="json")},
    )
    store.wait()
    back = restore(store, setup, 1)
    assert_same(back, state)
    assert_same(run(step, back, recipe, range(1, 3)), whole)
    # The parameters are dense, in openpi's types, and those that were trained against; who was trained shows
    # in the moments.
    loaded = load_params(tmp_path / "1", abstract_params(recipe)).params
    for path, value in state.averaged.items():
        np.testing.assert_array_equal(
            np.asarray(loaded[path], np.float32), np.asarray(value.astype(jnp.float32))
        )
    report = inspect(tmp_path, deep=True)
    assert report.parameters_trained == sum(x.size for x in state.trained.values())
    assert report.non_finite == 0
    assert report.steps[0].complete
    assert report.findings == []
    store.close()


def test_frozen_codes_stand_where_kernels_stood_and_take_a_quarter_of_their_bytes() -> None:
    shapes = abstract_state(
        load_recipe("pi05_libero_lora", ["train.trained=lora_frozen_vision", "train.frozen=int4"])
    )
    kernels = {path: value for path, value in shapes.frozen.items() if isinstance(value, Quantized)}
    bytes_of = {path: value.codes.size + 2 * value.scale.size for path, value in kernels.items()}
    elements = {path: int(np.prod(value.shape)) for path, value in kernels.items()}
    assert sum(elements.values()) > 3.3e9
    assert (
        sum(bytes_of.values()) / sum(elements.values()) < 0.54
    )  # bits: 4, and 16 for each 64 weights (each 16 in one kernel)
    assert all(
        shapes.params[path].shape == struct.shape
        for path, struct in abstract_params(load_recipe("pi05_libero_lora")).items()
    )
    rest = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes.frozen)) - sum(bytes_of.values())
    assert rest < 10e6


def test_8_bit_moments_of_the_real_model_take_a_quarter_of_their_bytes() -> None:
    sizes = {
        kind: sum(
            x.size * x.dtype.itemsize
            for x in jax.tree.leaves(
                abstract_state(load_recipe("pi05_libero", [f"train.optimizer.moments={kind}"])).opt_state
            )
        )
        for kind in ("float32", "bfloat16", "int8")
    }
    assert sizes["bfloat16"] / sizes["float32"] == pytest.approx(1 / 2, rel=1e-3)
    assert 1 / 4 < sizes["int8"] / sizes["float32"] < 0.256


def test_the_average_every_k_steps_keeps_its_equation() -> None:
    recipe = tiny("train.ema_decay=0.9", "train.ema_every_steps=3")
    rng = np.random.default_rng(0)
    start, *steps = [rng.standard_normal(5).astype(np.float32) for _ in range(8)]
    ema, expected = {"p": jnp.asarray(start)}, start.astype(np.float64)
    for done, parameters in enumerate(steps, start=1):
        before = ema["p"]
        ema = jax.jit(lambda ema, p, done: averaged(recipe, ema, {"p": p}, done))(
            ema, jnp.asarray(parameters), jnp.int32(done)
        )
        if done % 3:
            np.testing.assert_array_equal(ema["p"], before)
        else:
            expected = 0.9**3 * expected + (1 - 0.9**3) * parameters
        np.testing.assert_allclose(ema["p"], expected, rtol=1e-6)


def test_on_parameters_that_stand_still_every_k_steps_is_every_step() -> None:
    p, every, third = (
        {"p": jnp.full(3, 2.0)},
        tiny("train.ema_decay=0.9"),
        tiny("train.ema_decay=0.9", "train.ema_every_steps=3"),
    )
    one = other = {"p": jnp.zeros(3)}
    for done in range(1, 7):
        one, other = averaged(every, one, p, jnp.int32(done)), averaged(third, other, p, jnp.int32(done))
    np.testing.assert_allclose(one["p"], other["p"], rtol=1e-6)


def test_weights_that_are_read_are_quantized_leaf_by_leaf_into_the_codes_of_the_state() -> None:
    recipe = tiny(*LORA, "train.frozen=int8")
    params = {path: jnp.asarray(value) for path, value in random_params(recipe).items()}
    keep = keeper(setup_of(recipe, Layout(jax.devices()[:1])))
    kept = {
        path: keep(path, value.astype(abstract_params(recipe)[path].dtype)) for path, value in params.items()
    }
    assert_same(state_from(kept, recipe).frozen, start(recipe).frozen)


def test_8_bit_moments_that_are_streamed_with_their_parameters_are_those_that_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with parameters in host memory: pieces of a leaf, its codes and its scales go through the update
    together.
    """
    recipe = tiny("train.optimizer.moments=int8", "train.ema_decay=0.9")
    rng = np.random.default_rng(0)
    params = {"a/w": (24, 300), "b/w": (3, 8, 512), "c/bias": (64,)}
    values = {path: jnp.asarray(rng.standard_normal(shape), jnp.float32) for path, shape in params.items()}
    state = TrainState(
        jnp.int32(0),
        values,
        {},
        optimizer(recipe.train.optimizer).init(values),
        {path: x + 1 for path, x in values.items()},
    )

    def twice(state: TrainState) -> TrainState:
        for seed in range(2):
            grads = {
                path: jnp.asarray(np.random.default_rng(seed).standard_normal(x.shape), jnp.float32)
                for path, x in values.items()
            }
            state = jax.jit(
                lambda state, grads: update.apply_gradients(recipe, state, jnp.zeros(()), grads)[0]
            )(state, grads)
        return state

    resident = twice(state)
    monkeypatch.setattr(update, "_is_streamed", lambda *_: True)
    monkeypatch.setattr(host, "_PIECE", 2048)
    for one, other in zip(jax.tree.leaves(resident), jax.tree.leaves(twice(state)), strict=True):
        # Of an entry that an update has brought near zero, what is left is rounding.
        atol = 1e-9 * np.abs(np.asarray(other, np.float64)).max(initial=0)
        np.testing.assert_allclose(
            np.asarray(one, np.float64), np.asarray(other, np.float64), rtol=1e-6, atol=atol
        )


def test_the_fingerprint_is_that_of_the_weights_as_they_were_read(tmp_path: Path) -> None:
    """Quantized weights have another norm; the sentence about what was loaded must not say so."""
    source = openpi_checkpoint("full", tmp_path) / "4" / "params"
    said = []
    for frozen in ("bfloat16", "int4"):
        recipe = load_recipe("smoke", [f"weights.source={source}", *LORA, f"train.frozen={frozen}"])
        setup = setup_of(recipe, Layout(jax.devices()[:1]))
        state, provenance = first_state(setup, jax.random.key(0), Silent())
        said.append(provenance["param_norm"])
        assert any(isinstance(x, Quantized) for x in state.frozen.values()) == (frozen == "int4")
    assert said[0] == said[1]


class Silent:
    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
