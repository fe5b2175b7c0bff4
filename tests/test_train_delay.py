"""Tests laws of training with simulated delays: given actions are clean, at their own time, not learned."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.artifacts import Levers
from harness.model.pi05 import Params, bind, graph_of
from harness.serve.rtc import Previous
from harness.train import step as step_module
from harness.train.compiled import lower_step
from harness.train.delay import draw_delays, mean_loss, row_losses
from harness.train.setup import setup_of
from harness.train.sharding import Layout
from harness.train.step import draw, observe
from tests.support.learned import LEARNS, computed, learned
from tests.support.learned import compiled as compiled_once
from tests.support.plain_rtc import sample_continued
from tests.support.tiny import random_batch, random_params, tiny

DELAYED = (*LEARNS, "train.action_delay.max=4")
LEARNS_LONGER = (
    "train.optimizer.schedule={warmup_steps: 10, peak: 3.0e-3, decay_steps: 200, end: 1.0e-4}",
    "train.ema_decay=null",
    "train.action_delay.max=4",
)
RECIPE = tiny()
HORIZON = RECIPE.model.action_horizon
ROWS = 3


@functools.cache
def scene() -> tuple[Params, dict[str, Any]]:
    """(parameters, a batch with noise and times)."""
    batch = random_batch(RECIPE, batch=ROWS)
    noise = np.random.default_rng(7).standard_normal(batch["actions"].shape).astype(np.float32)
    return random_params(RECIPE), batch | {"noise": noise, "time": np.array([0.2, 0.6, 1.0], np.float32)}


@functools.cache
def program(*, given: bool) -> Any:
    """The jitted loss [B, A] of (parameters, batch)."""
    graph = graph_of(RECIPE.model, remat="none")

    def loss(params: Params, batch: dict[str, Any]) -> jax.Array:
        delay = (batch["delay"],) if given else ()
        return bind(graph, params).loss(
            observe(batch, None), batch["actions"], batch["noise"], batch["time"], *delay
        )

    return jax.jit(loss)


def losses(delay: list[int] | None, **changes: Any) -> np.ndarray:
    params, batch = scene()
    told = {} if delay is None else {"delay": np.array(delay, np.int32)}
    return np.asarray(program(given=delay is not None)(params, batch | told | changes))


def test_without_a_delay_the_loss_is_the_plain_one_but_for_rounding() -> None:
    """The two programs compute the same numbers. XLA fuses them otherwise, so the last bit may differ."""
    np.testing.assert_allclose(losses([0] * ROWS), losses(None), rtol=1e-6)


def test_given_actions_have_no_loss_and_the_others_have_one() -> None:
    found = losses([0, 3, 9])
    for row, delay in enumerate([0, 3, 9]):
        assert (found[row, :delay] == 0).all()
        assert (found[row, delay:] > 0).all()
    np.testing.assert_allclose(found[0], losses(None)[0], rtol=1e-6)


def test_given_actions_are_seen_clean_and_the_others_depend_on_them() -> None:
    _, batch = scene()
    before, given = losses([0, 3, 9]), np.arange(HORIZON) < np.array([0, 3, 9])[:, None]
    other_noise = np.where(given[..., None], 99.0, batch["noise"]).astype(np.float32)
    np.testing.assert_array_equal(losses([0, 3, 9], noise=other_noise), before)
    other_actions = np.where(given[..., None], batch["actions"] + 1, batch["actions"])
    after = losses([0, 3, 9], actions=other_actions)
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1, 3:] != before[1, 3:]).all()


def test_no_gradient_goes_through_the_targets_of_given_actions() -> None:
    """The noise of an action enters its target, and its input by the flow time: of given ones, neither."""
    params, batch = scene()
    delay = np.array([0, 3, 9], np.int32)
    slope = jax.grad(
        lambda noise: program(given=True)(params, batch | {"noise": noise, "delay": delay}).sum()
    )(jnp.asarray(batch["noise"]))
    for row, given in enumerate(delay):
        assert not slope[row, :given].any()
        assert np.abs(slope[row, given:]).min() > 0


def test_given_actions_are_tokens_of_time_zero() -> None:
    """All given: the velocity is that of clean actions at time 0. None given: that of their own time."""
    params, batch = scene()
    model = bind(graph_of(RECIPE.model, remat="none"), params)
    velocity = jax.jit(model.velocity_of(observe(jax.tree.map(jnp.asarray, batch), None), HORIZON))
    x, time = jnp.asarray(batch["actions"]), jnp.asarray(batch["time"])
    every = jnp.ones((ROWS, HORIZON), bool)
    np.testing.assert_allclose(velocity(x, time, every), velocity(x, 0 * time, None), atol=1e-6)
    np.testing.assert_allclose(velocity(x, time, ~every), velocity(x, time, None), atol=1e-6)
    assert np.abs(velocity(x, time, every) - velocity(x, time, None)).max() > 1e-4


def test_delays_are_uniform_and_change_no_other_random_number() -> None:
    key, shape = jax.random.key(3), (20_000, 10, 1)
    plain, delayed = draw(key, shape), draw(key, shape, 4)
    for name, value in plain.items():
        if name != "augment":
            np.testing.assert_array_equal(value, delayed[name])
    assert delayed.keys() - plain.keys() == {"delay", "weight"}
    counts = np.bincount(np.asarray(delayed["delay"]), minlength=6)
    assert counts[5:].tolist() == [0]
    np.testing.assert_allclose(counts[:5] / 20_000, 0.2, atol=0.02)
    again = draw_delays(jax.random.key(4), 20_000, 10, 4)["delay"]
    assert np.corrcoef(delayed["delay"], again)[0, 1] < 0.05
    assert np.abs(np.corrcoef(delayed["delay"], np.asarray(plain["time"]))[0, 1]) < 0.05


def test_the_mean_is_over_the_actions_that_count_however_the_batch_is_cut() -> None:
    each = np.random.default_rng(0).uniform(1, 2, (4, 6)).astype(np.float32)
    delay = np.array([0, 5, 2, 2])
    each[np.arange(6) < delay[:, None]] = 0
    weight = np.full(4, 4 * 6 / (24 - delay.sum()), np.float32)
    halves = [
        float(mean_loss(each[part], {"delay": delay[part], "weight": weight[part]}))
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(np.mean(halves), each.sum() / (24 - delay.sum()), rtol=1e-6)
    np.testing.assert_allclose(
        row_losses(jnp.asarray(each), {"delay": delay}), each.sum(axis=1) / (6 - delay), rtol=1e-6
    )
    assert float(mean_loss(jnp.asarray(each), {})) == pytest.approx(each.mean())


def test_a_step_in_which_no_delay_is_drawn_learns_what_a_plain_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(_key: Any, rows: int, _horizon: int, _most: int) -> dict[str, jax.Array]:
        return {"delay": jnp.zeros(rows, jnp.int32), "weight": jnp.ones(rows)}

    assert float(draw_delays(jax.random.key(0), 4, 10, 0)["weight"][0]) == 1.0
    monkeypatch.setattr(step_module, "draw_delays", none)
    # Not the cached program of these overrides, which draws.
    program = compiled_once.__wrapped__(DELAYED)
    (state, lines), (plain, plain_lines) = computed(program, 2), learned(LEARNS, 2)
    assert lines[0]["loss"] == plain_lines[0]["loss"]
    for path, value in plain.trained.items():
        np.testing.assert_allclose(state.trained[path], value, atol=2e-6, err_msg=path)


def test_delays_are_drawn_before_the_cut_into_microbatches() -> None:
    (big, big_lines), (small, small_lines) = learned(DELAYED), learned(DELAYED, accumulation_steps=4)
    for one, other in zip(big_lines, small_lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    for path, value in big.trained.items():
        np.testing.assert_allclose(value, small.trained[path], atol=2e-6, err_msg=path)
    assert big_lines[0]["loss"] != pytest.approx(learned()[1][0]["loss"], rel=1e-4)


def test_the_same_delays_are_drawn_again_after_a_resume() -> None:
    """A step depends on its number and key alone."""
    assert computed(compiled_once(DELAYED), 3)[1] == learned(DELAYED)[1]


def test_only_a_recipe_with_the_key_has_another_program() -> None:
    def program_of(*overrides: str) -> str:
        recipe = tiny("train.trained=action_expert", *overrides)
        cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
        levers = Levers(platform="cpu", microbatch=2, prompt_tokens=16, cameras=cameras)
        return lower_step(setup_of(recipe, Layout(jax.local_devices()[:1])), levers)[1]

    plain = program_of()
    assert program_of("train.action_delay.max=0") == plain
    assert program_of("train.action_delay.max=4") != plain


def test_a_model_that_was_trained_with_delays_goes_on_from_the_given_actions() -> None:
    """Every chunk repeats one action, another in each sample, so only given actions can tell the rest.

    Measured after 200 steps of 16 chunks: the mean distance to that action is 0.99 without given ones, 0.35
    behind two.
    """
    program = compiled_once(LEARNS_LONGER)
    recipe, state = program.recipe, program.begin()
    batch, rng = random_batch(recipe, batch=16), np.random.default_rng(0)

    def chunks() -> np.ndarray:
        drawn = rng.standard_normal((16, 1, recipe.model.action_dim)).astype(np.float32)
        return np.repeat(drawn, HORIZON, axis=1)

    for _ in range(200):
        state, _ = program.step(state, batch | {"actions": chunks()}, jax.random.key(5))
    told = chunks()
    noise = jax.random.normal(jax.random.key(1), told.shape)
    graph, seen = graph_of(recipe.model, remat="none"), observe(batch, None)

    def error(previous: Previous | None) -> float:
        found = jax.jit(lambda params: sample_continued(bind(graph, params), seen, noise, 10, previous))(
            state.params
        )
        return float(np.abs(np.asarray(found) - told)[:, 2:].mean())

    assert error(Previous(told, delay=2, execution_horizon=8)) < 0.6 * error(None)
