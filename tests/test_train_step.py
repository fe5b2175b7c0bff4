"""Tests laws of the training step."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from harness.recipe.load import load_recipe
from harness.train.optimizer import learning_rate
from harness.train.state import state_from
from harness.train.step import draw, make_step
from tests.support.learned import LEARNS, compiled, computed, learned
from tests.support.tiny import LORA, random_batch, random_params, tiny


def test_accumulation_equals_one_big_batch() -> None:
    (big, big_lines), (small, small_lines) = learned(), learned(accumulation_steps=4)
    for one, other in zip(big_lines, small_lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    for path, value in big.trained.items():
        np.testing.assert_allclose(value, small.trained[path], atol=2e-6, err_msg=path)


def test_augmentation_is_drawn_before_the_cut_into_microbatches() -> None:
    augmented = (*LEARNS, "data.augment=true")
    loss = learned(augmented, 1)[1][0]["loss"]
    assert loss == pytest.approx(learned(augmented, 1, accumulation_steps=2)[1][0]["loss"], rel=1e-5)
    assert loss != pytest.approx(learned()[1][0]["loss"], rel=1e-5)


@pytest.mark.parametrize("trained", ["lora", "lora_frozen_vision"])
def test_frozen_parameters_do_not_move_and_all_trained_ones_do(trained: str) -> None:
    # With the recipe's own eps: a gradient that is zero in exact arithmetic moves its parameter, too.
    program = compiled((*LORA, f"train.trained={trained}", "train.ema_decay=0.9"))
    start = jax.device_get(program.begin())
    end, _ = computed(program, 3)
    assert start.frozen.keys() == end.frozen.keys()
    for path, value in start.frozen.items():
        np.testing.assert_array_equal(value, end.frozen[path])
    assert [path for path, value in start.trained.items() if np.array_equal(value, end.trained[path])] == []
    assert set(end.ema or {}) == set(end.trained)


def test_the_average_follows_its_equation() -> None:
    one, two = (learned(steps=steps)[0] for steps in (1, 2))
    path = "action_in_proj/kernel"
    assert one.ema is not None
    assert two.ema is not None
    ema = 0.9 * np.asarray(one.ema[path]) + 0.1 * np.asarray(two.trained[path])
    np.testing.assert_allclose(two.ema[path], ema, rtol=1e-6)


def test_without_an_average_none_is_begun_and_a_step_makes_none() -> None:
    recipe = tiny("train.ema_decay=null")
    begun = jax.eval_shape(lambda params: state_from(params, recipe), random_params(recipe))
    after, _ = jax.eval_shape(make_step(recipe), begun, random_batch(recipe), jax.random.key(5))
    assert begun.ema is None
    assert after.ema is None


def test_a_step_depends_on_its_number_and_key_alone() -> None:
    assert computed(compiled(LEARNS), 3)[1] == learned()[1]
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
