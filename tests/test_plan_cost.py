"""Tests the cost model: documented peaks of the cards, an independent count of operations, order of plans."""

from __future__ import annotations

import pytest

from harness.artifacts import Levers
from harness.plan.candidates import changed
from harness.plan.cards import CARDS
from harness.plan.cost import LOADER_SAMPLES_PER_CORE, flops_per_sample, peak_flops, seconds_per_step
from harness.recipe.load import load_recipe

LEVERS = Levers(
    platform="cuda",
    microbatch=8,
    accumulation_steps=32,
    prompt_tokens=48,
    cameras=["base_0_rgb", "left_wrist_0_rgb"],
)
FULL, LORA = load_recipe("pi05_libero"), load_recipe("pi05_libero_lora")
A4090 = CARDS["rtx_4090"]


# Dense bfloat16 TFLOP/s with float32 accumulation, of the documents that plan.cards names.
@pytest.mark.parametrize(
    ("card", "tflops"),
    [("rtx_3060", 25.6), ("rtx_3090", 71), ("rtx_4090", 165.2), ("rtx_5090", 209.5), ("rtx_a6000", 154.8),
     ("a40", 149.7), ("l4", 121), ("l40s", 362),
     ("rtx_6000_ada", 364), ("a100_80", 312), ("h100", 989), ("b200", 2250)],
)  # fmt: skip
def test_the_peak_is_that_of_the_documents(card: str, tflops: float) -> None:
    assert peak_flops(CARDS[card]) == pytest.approx(tflops * 1e12, rel=0.025)


def test_operations_are_those_counted_by_hand() -> None:
    """Full: forward, forward again, two products backward, for 2 x parameters x tokens; by the parts' sizes
    as published, attention aside.
    """
    tokens, patches = 512 + 48, 512
    language = 18 * (2048 * 256 * (8 + 2 + 8) + 3 * 2048 * 16_384)
    expert = 18 * (1024 * 256 * (8 + 2 + 8) + 3 * 1024 * 4096)
    vision = 27 * (4 * 1152**2 + 2 * 1152 * 4304) + 588 * 1152 + 1152 * 2048
    products = 4 * 2 * (language * tokens + expert * 10 + vision * patches)
    attention = 4 * (4 * patches * 256 * 1152 * 27 + 4 * (tokens**2 + 10 * (tokens + 10)) * 8 * 256 * 18)
    assert flops_per_sample(FULL, LEVERS) == pytest.approx(products + attention, rel=0.01)


def test_what_is_not_trained_costs_less() -> None:
    some = [
        changed(FULL, {"train.trained": "action_expert"}),
        changed(LORA, {"train.trained": "lora_frozen_vision"}),
        LORA,
    ]
    who = [flops_per_sample(recipe, LEVERS) for recipe in some]
    assert who == sorted(who)
    assert who[-1] < flops_per_sample(FULL, LEVERS)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ({"host": ["ema", "moments"]}, {}),
        ({"host": ["ema", "moments"]}, {"host": ["ema"]}),
        ({"microbatch": 1, "accumulation_steps": 256}, {}),
        ({}, {"devices": 4, "accumulation_steps": 8}),
        ({"devices": 4, "accumulation_steps": 8, "fsdp": 4}, {"devices": 4, "accumulation_steps": 8}),
        ({"prompt_tokens": 200}, {}),
    ],
)
def test_plans_of_one_recipe_are_ordered(slower: dict, faster: dict) -> None:
    a, b = (
        seconds_per_step(FULL, LEVERS.model_copy(update=levers), A4090, None) for levers in (slower, faster)
    )
    assert a > b


def test_a_faster_card_is_faster_and_the_loader_sets_a_floor() -> None:
    assert seconds_per_step(FULL, LEVERS, CARDS["h100"], None) < seconds_per_step(FULL, LEVERS, A4090, None)
    assert seconds_per_step(LORA, LEVERS, CARDS["b200"], 0.1) == pytest.approx(2560 / LOADER_SAMPLES_PER_CORE)
