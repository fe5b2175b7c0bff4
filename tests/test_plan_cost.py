"""Tests the cost model: documented peaks of the cards, an independent count of operations, order of plans."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest

from harness.artifacts import Levers
from harness.artifacts.plan import Remat
from harness.plan.activations import KEPT_SHARE, kept_bytes
from harness.plan.candidates import changed
from harness.plan.cards import CARDS
from harness.plan.cost import (
    LOADER_SAMPLES_PER_CORE,
    SUSTAINED_BYTES,
    host_link,
    peak_flops,
    seconds_per_step,
)
from harness.plan.memory import exchanged_bytes, pinned_bytes, table_bytes
from harness.plan.operations import flops_per_sample
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.units import GIB

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
    """Full: forward, two products backward, and forward again but for what no gradient needs.

    Attention is two products forward and again, and four backward, which share their logits with what is
    computed again.
    """
    tokens, patches, actions, layers = 512 + 48, 512, 10, 17
    attention, feed_forward = 2048 * 256 * (8 + 2 + 8), 3 * 2048 * 16_384
    # Of the last layer, which is not computed again, the language model has keys and values only.
    language = layers * (4 * attention + (4 - 1 / 3) * feed_forward) + 3 * 2048 * 256 * 2
    expert = (4 * layers + 3) * (1024 * 256 * (8 + 2 + 8) + 3 * 1024 * 4096)
    vision = 27 * (4 * 4 * 1152**2 + (4 + 3) * 1152 * 4304) + 2 * 588 * 1152 + 3 * 1152 * 2048
    products = 2 * (language * tokens + expert * actions + vision * patches)
    seen = 4 * 4 * patches * 256 * 1152 * 27
    # The prefix asks the prefix; the actions ask all, whose number is rounded up to 576.
    joint = 2 * 8 * 256 * (8 * layers * (tokens**2 + actions * 576) + 6 * actions * 576)
    assert flops_per_sample(FULL, LEVERS) == pytest.approx(products + seen + joint, rel=1e-4)


# Operations of a sample in XLA's optimized program for an H200, jaxlib 0.10.2: with 32 rows a microbatch by
# python -m benchmarks.step_program, the last four with 8 rows by python -m benchmarks.operations --compiled.
@pytest.mark.parametrize(
    ("recipe", "remat", "compiled"),
    [
        (FULL, "block", 612.8e12 / 64),
        (FULL, "mlp", 530.9e12 / 64),
        (FULL, "names", 506.6e12 / 64),
        (FULL, "none", 7.7880e12),
        (LORA, "block", 7.5732e12),
        (changed(LORA, {"train.trained": "lora_frozen_vision"}), "block", 6.3930e12),
        (changed(FULL, {"train.trained": "action_expert"}), "block", 2.6307e12),
    ],
)
def test_operations_are_those_of_the_compiled_program(recipe: Recipe, remat: str, compiled: float) -> None:
    levers = LEVERS.model_copy(update={"remat": remat})
    assert flops_per_sample(recipe, levers) == pytest.approx(compiled, rel=1e-3)


# GiB that the program of the same step takes more than with "block".
@pytest.mark.parametrize(("remat", "compiled"), [("block", 0.0), ("mlp", 17.2), ("names", 27.4)])
def test_what_is_kept_is_counted_a_little_above_the_compiled_program(remat: str, compiled: float) -> None:
    counted = kept_bytes(FULL, LEVERS.model_copy(update={"remat": remat, "microbatch": 32})) / GIB
    assert KEPT_SHARE * counted <= compiled <= counted


@pytest.mark.parametrize("who", ["full", "lora", "lora_frozen_vision", "action_expert"])
def test_each_level_computes_less_and_keeps_more(who: str) -> None:
    recipe = FULL if who in ("full", "action_expert") else LORA
    recipe = changed(recipe, {"train.trained": who})
    steps = [LEVERS.model_copy(update={"remat": level}) for level in get_args(Remat)]
    operations = [flops_per_sample(recipe, levers) for levers in steps]
    kept = [kept_bytes(recipe, levers) for levers in steps]
    assert all(more > fewer for more, fewer in pairwise(operations))
    assert kept[0] == 0
    assert all(less <= more for less, more in pairwise(kept))


def test_the_faster_levels_are_faster_on_a_card_and_keeping_all_is_not_worth_its_bytes() -> None:
    block, mlp, names, everything = (
        seconds_per_step(FULL, LEVERS.model_copy(update={"remat": level}), CARDS["h200"], None)
        for level in get_args(Remat)
    )
    assert names < mlp < block
    assert names < everything


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


@pytest.mark.parametrize(
    ("host", "changes", "at_once"),
    [
        (["ema"], {}, 0.0),
        (["moments"], {}, 1.0),
        (["ema", "moments"], {}, 0.5),
        (["ema", "moments", "masters"], {}, 1.0),
        (["ema", "moments", "masters"], {"train.optimizer.moments": "int8"}, 1.0),
    ],
)
def test_the_copies_of_an_update_go_both_ways_at_once(host: list[str], changes: dict, at_once: float) -> None:
    """Of arrays in two groups: one alone has none to go back beside it, and of three one is too many."""
    recipe, levers = changed(FULL, changes), LEVERS.model_copy(update={"host": host})
    pinned = pinned_bytes(recipe, levers)
    assert exchanged_bytes(recipe, levers) == pytest.approx(pinned * 2 / (1 + at_once))
    two = levers.model_copy(update={"devices": 2, "accumulation_steps": 16})
    assert exchanged_bytes(recipe, two) == 2 * exchanged_bytes(recipe, levers)


def test_masters_in_host_memory_pass_once_a_step_and_their_table_once_more() -> None:
    masters, rest = (LEVERS.model_copy(update={"host": host}) for host in (["ema", "masters"], ["ema"]))
    table = 257_152 * 2048 * 4
    assert (table_bytes(FULL, masters), table_bytes(FULL, rest)) == (table, 0)
    # A float32 array beside another passes while that one goes back: as many bytes as one that passes alone.
    assert exchanged_bytes(FULL, masters) == exchanged_bytes(FULL, rest)
    link = host_link(A4090) * SUSTAINED_BYTES
    slower = seconds_per_step(FULL, masters, A4090, None) - seconds_per_step(
        FULL, rest.model_copy(update={"compute_copy": True}), A4090, None
    )
    assert slower == pytest.approx(table / link)


def test_a_step_from_host_memory_is_at_most_a_quarter_slower_than_one_on_the_card() -> None:
    levers = LEVERS.model_copy(update={"microbatch": 16, "accumulation_steps": 16})
    host = levers.model_copy(update={"host": ["ema", "moments", "masters"], "compute_copy": True})
    assert seconds_per_step(FULL, host, A4090, None) < 1.25 * seconds_per_step(FULL, levers, A4090, None)


def test_a_faster_card_is_faster_and_the_loader_sets_a_floor() -> None:
    assert seconds_per_step(FULL, LEVERS, CARDS["h100"], None) < seconds_per_step(FULL, LEVERS, A4090, None)
    assert seconds_per_step(LORA, LEVERS, CARDS["b200"], 0.1) == pytest.approx(2560 / LOADER_SAMPLES_PER_CORE)
