"""Laws of training over several devices: any plan over shards learns what one device learns."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.train import host
from harness.train.setup import setup_of
from harness.train.start import initializer
from tests.support.sharded import (
    FOUR,
    ONE,
    TWO_BY_TWO,
    assert_alike,
    check_shards,
    here,
    layout,
    learner,
    levers,
    steps_of,
    three_steps,
)
from tests.support.tiny import LORA, random_params

ADAPTERS = (*LORA, "train.ema_decay=null")
DELAYED = (*ADAPTERS, "train.action_delay.max=4")


def same_within(recipe_overrides: tuple[str, ...], accumulation_steps: int, mesh: dict[str, int]) -> None:
    one, start = three_steps(recipe_overrides, 1, **ONE), random_params(learner(*recipe_overrides))
    assert (
        max(float(np.abs(np.asarray(x) - start[path]).max()) for path, x in one[0].trained.items()) > 1e-3
    ), "nothing was trained"
    assert_alike(one, three_steps(recipe_overrides, accumulation_steps, **mesh))


def law_four_shards_train_like_one_device() -> None:
    same_within((), 2, FOUR)


def law_two_replicas_of_two_shards_train_like_one_device() -> None:
    same_within((), 1, TWO_BY_TWO)


def law_lora_with_simulated_delays_trains_alike_and_its_frozen_weights_are_sharded() -> None:
    same_within(DELAYED, 1, FOUR)
    frozen = three_steps(DELAYED, 1, **FOUR)[0].frozen
    check_shards({"frozen": frozen}, 4)


def law_delays_change_what_is_learned() -> None:
    """Otherwise the law above would say nothing about them."""
    _, with_delays = three_steps(DELAYED, 1, **ONE)
    _, without = three_steps(ADAPTERS, 1, **ONE)
    assert all(a["loss"] != b["loss"] for a, b in zip(with_delays, without, strict=True))


def law_any_plan_over_shards_learns_the_same() -> None:
    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @given(
        overrides=st.sampled_from([(), ADAPTERS]),
        mesh=st.sampled_from([FOUR, TWO_BY_TWO, {"devices": 2, "fsdp": 2}]),
        accumulation_steps=st.sampled_from([1, 2]),
        attention=st.sampled_from(["full", "chunked"]),
        remat=st.sampled_from(["block", "mlp", "names", "none"]),
        compute_copy=st.booleans(),
        in_host=st.sampled_from([["ema"], ["moments"], ["ema", "moments"], ["moments", "masters"]]),
    )
    def check(
        overrides: tuple[str, ...],
        mesh: dict[str, int],
        accumulation_steps: int,
        in_host: list[str],
        **others: Any,
    ) -> None:
        recipe = learner(*overrides)
        parts = [part for part in in_host if part != "ema" or recipe.train.ema_decay is not None]
        plan = levers(recipe, accumulation_steps, **mesh).model_copy(update={"host": parts, **others})
        with mock.patch.object(host, "_PIECE", 2**11):
            step = here(recipe, plan)
        assert_alike(three_steps(overrides, 1, **ONE), steps_of(recipe, step, 3))

    check()


def law_a_random_state_is_in_shards_and_the_same_on_any_number_of_devices() -> None:
    recipe = learner()
    made = {fsdp: initializer(setup_of(recipe, layout(4, fsdp)))(jax.random.key(3)) for fsdp in (4, 2)}
    for fsdp, state in made.items():
        check_shards(state, fsdp)
    one = initializer(setup_of(recipe, layout(**ONE)))(jax.random.key(3))
    for state in made.values():
        jax.tree.map(np.testing.assert_array_equal, state, one)


def law_the_state_stays_in_shards_from_step_to_step() -> None:
    for mesh in (FOUR, TWO_BY_TWO):
        check_shards(three_steps((), 2 if mesh is FOUR else 1, **mesh)[0], mesh["fsdp"])


def law_a_plan_for_more_devices_than_there_are_is_refused() -> None:
    recipe = learner()
    plan = levers(recipe, **ONE).model_copy(update={"devices": 8, "fsdp": 8})
    with pytest.raises(HarnessError) as caught:
        here(recipe, plan)
    assert caught.value.code == "devices-missing"
