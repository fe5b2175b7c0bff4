"""Tests laws of the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.train.optimizer import learning_rate
from harness.train.state import TrainState, state_from
from harness.train.step import draw, make_step
from tests.support.tiny import LORA, random_batch, random_params, tiny


def run(recipe: Recipe, steps: int = 3, **levers: int) -> tuple[TrainState, list[dict]]:
    state = state_from({path: jnp.asarray(value) for path, value in random_params(recipe).items()}, recipe)
    step = jax.jit(make_step(recipe, **levers))
    lines = []
    for i in range(steps):
        state, metrics = step(state, random_batch(recipe, seed=i), jax.random.key(5))
        lines.append({name: float(value) for name, value in metrics.items()})
    return state, lines


def test_accumulation_equals_one_big_batch() -> None:
    recipe = tiny(
        "train.optimizer.eps=1.0e-4",
        "train.optimizer.schedule={warmup_steps: 1, peak: 1.0e-3, decay_steps: 10, end: 0.0}",
    )
    (big, big_lines), (small, small_lines) = run(recipe), run(recipe, accumulation_steps=4)
    for one, other in zip(big_lines, small_lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    for path, value in big.trained.items():
        np.testing.assert_allclose(value, small.trained[path], atol=2e-6, err_msg=path)


def test_augmentation_is_drawn_before_the_cut_into_microbatches() -> None:
    recipe = tiny("data.augment=true")
    assert run(recipe, 1)[1][0]["loss"] == pytest.approx(
        run(recipe, 1, accumulation_steps=2)[1][0]["loss"], rel=1e-5
    )
    assert run(recipe, 1)[1][0]["loss"] != pytest.approx(run(tiny(), 1)[1][0]["loss"], rel=1e-5)


@pytest.mark.parametrize("trained", ["lora", "lora_frozen_vision"])
def test_frozen_parameters_do_not_move_and_all_trained_ones_do(trained: str) -> None:
    recipe = tiny(*LORA, f"train.trained={trained}", "train.ema_decay=0.9")
    start = state_from({path: jnp.asarray(value) for path, value in random_params(recipe).items()}, recipe)
    end, _ = run(recipe)
    for path, value in start.frozen.items():
        np.testing.assert_array_equal(value, end.frozen[path])
    assert [path for path, value in start.trained.items() if np.array_equal(value, end.trained[path])] == []
    assert set(end.ema or {}) == set(end.trained)


def test_the_average_follows_its_equation() -> None:
    recipe = tiny("train.ema_decay=0.9")
    states = [run(recipe, steps)[0] for steps in (1, 2)]
    path = "action_in_proj/kernel"
    ema = 0.9 * np.asarray(states[0].ema[path]) + 0.1 * np.asarray(states[1].trained[path])  # type: ignore[index]
    np.testing.assert_allclose(states[1].ema[path], ema, rtol=1e-6)  # type: ignore[index]
    assert run(tiny("train.ema_decay=null"), 1)[0].ema is None


def test_a_step_depends_on_its_number_and_key_alone() -> None:
    recipe = tiny()
    again = run(recipe)[1]
    assert run(recipe)[1] == again
    a, b = (draw(jax.random.fold_in(jax.random.key(5), step), (4, 10, 32)) for step in (0, 1))
    assert not np.allclose(a["noise"], b["noise"])


def test_time_is_beta_between_a_thousandth_and_one() -> None:
    time = np.asarray(draw(jax.random.key(0), (20_000, 1, 1))["time"])
    assert time.min() >= 0.001
    assert time.max() <= 1.0
    assert (time.mean() - 0.001) / 0.999 == pytest.approx(1.5 / 2.5, abs=0.01)  # mean of Beta(1.5, 1)


def test_the_published_schedule() -> None:
    rate = learning_rate(load_recipe("pi05_libero").train.optimizer.schedule)
    assert float(rate(0)) == pytest.approx(5e-5 / 10_001, rel=1e-3)
    assert float(rate(15)) == pytest.approx(
        8e-8, rel=0.01
    )  # the report's last line: nothing can have been learned
    assert float(rate(10_000)) == pytest.approx(5e-5)
    assert float(rate(29_999)) == pytest.approx(5e-5)
