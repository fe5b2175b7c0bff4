"""Tests the cost model: documented peaks of the cards, an independent count of operations, order of plans."""

from __future__ import annotations

import pytest

from harness.artifacts import Levers
from harness.plan.candidates import changed
from harness.plan.cards import CARDS
from harness.plan.cost import LOADER_SAMPLES_PER_CORE, peak_flops, seconds_per_step
from harness.plan.operations import flops_per_sample
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe

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
    """Full: forward, two products backward, and forward again but for what no gradient needs."""
    tokens, patches, actions, layers = 512 + 48, 512, 10, 17
    attention, feed_forward = 2048 * 256 * (8 + 2 + 8), 3 * 2048 * 16_384
    # Of the last layer, which is not computed again, the language model has keys and values only.
    language = layers * (4 * attention + (4 - 1 / 3) * feed_forward) + 3 * 2048 * 256 * 2
    expert = (4 * layers + 3) * (1024 * 256 * (8 + 2 + 8) + 3 * 1024 * 4096)
    vision = 27 * (4 * 4 * 1152**2 + (4 + 3) * 1152 * 4304) + 2 * 588 * 1152 + 3 * 1152 * 2048
    products = 2 * (language * tokens + expert * actions + vision * patches)
    seen = 4 * 4 * patches * 256 * 1152 * 27
    joint = 4 * 8 * 256 * (4 * layers * (tokens + actions) ** 2 + 3 * actions * (tokens + actions))
    assert flops_per_sample(FULL, LEVERS) == pytest.approx(products + seen + joint, rel=1e-4)


# Operations of a sample in XLA's optimized program for an H200, 8 rows a microbatch, jaxlib 0.10.2:
# python -m benchmarks.operations --compiled.
@pytest.mark.parametrize(
    ("recipe", "changes", "remat", "compiled"),
    [
        (FULL, {}, "block", 9.5800e12),
        (FULL, {}, "none", 7.7691e12),
        (LORA, {}, "block", 7.5777e12),
        (LORA, {"train.trained": "lora_frozen_vision"}, "block", 6.3975e12),
        (FULL, {"train.trained": "action_expert"}, "block", 6.3024e12),
    ],
)
def test_operations_are_those_of_the_compiled_program(
    recipe: Recipe, changes: dict, remat: str, compiled: float
) -> None:
    levers = LEVERS.model_copy(update={"remat": remat})
    assert flops_per_sample(changed(recipe, changes), levers) == pytest.approx(compiled, rel=1e-3)


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
