"""Tests that hash, deviations, differences and verdict agree on the meaning of every key of the schema."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import HarnessError
from harness.recipe.deviations import deviations
from harness.recipe.differences import differences
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.meaning import MEANING, flat, meaning, without_cadence
from harness.recipe.schema import Recipe

# A recipe that has every key: adapters, weights, an average, and those that are written only where they are
# set.
LATER = (
    "model.discrete_state_input=true",
    "data.relative=0-5",
    "data.adapt=aloha",
    "data.prompt=fold the towel",
    "data.episodes.include=0-90",
    "data.episodes.exclude=[8]",
    "data.norm_stats=stats.json",
    "train.holdout.episodes=0.05",
    "train.holdout.seed=1",
    "train.holdout.frames=65",
    "train.action_delay.max=3",
)
BASE = load_recipe("pi05_libero_lora", ["train.ema_decay=0.99", *LATER])
KEYS = sorted(flat(BASE.model_dump(mode="json")))
# A mixture has no episodes of its own, so one recipe cannot have every key.
MIXED = load_recipe("smoke", ["data.default_prompt=fold", "data.datasets=[{dataset: a}, {dataset: b}]"])
NAMED = sorted({*KEYS, *flat(MIXED.model_dump(mode="json"))})
# One of these is valid for each key, and other than what is there.
VALUES: tuple[Any, ...] = (
    *(
        True,
        False,
        7,
        28,
        99_000,
        0.5,
        1e-9,
        "other",
        "gs://bucket/other",
        "lora_frozen_vision",
        "float32",
        "bfloat16",
        "int8",
    ),
    *(None, "dummy", "mu/14", "zscore", "error", "pass_through", "trained", "all"),
)
# Told though it is no other experiment: the run is shorter, the random numbers are others.
TOLD = {"train.steps", "train.seed"}


def changed(key: str) -> Recipe:
    """BASE with another valid value at `key`."""
    for value in VALUES:
        tree = BASE.model_dump(mode="json")
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node[part]
        if node[last] == value:
            continue
        node[last] = value
        try:
            return recipe_from(tree, where="test")
        except HarnessError:
            continue
    raise AssertionError(f"no other value is known for {key}: add one to VALUES")


@pytest.mark.parametrize("key", KEYS)
def test_every_place_says_the_same_of_a_changed_key(key: str) -> None:
    other, (weight, why) = changed(key), meaning(key)
    assert (other.sha256() == BASE.sha256()) == (weight == "cadence")
    assert bool(deviations(BASE, other)) == (meaning(key).deviates or key in TOLD)
    if key not in ("name", "description"):
        assert [(each.key, each.weight, each.why) for each in differences(BASE, other)] == [
            (key, weight, why)
        ]
    before, after = (
        flat(without_cadence(BASE.model_dump(mode="json"))),
        flat(without_cadence(other.model_dump(mode="json"))),
    )
    assert (before == after) == (weight == "cadence")


@pytest.mark.parametrize("key", [key for key in MEANING if key])
def test_the_table_names_keys_of_the_schema_only(key: str) -> None:
    assert any(known == key or known.startswith(f"{key}.") for known in NAMED)


def test_other_shares_of_a_mixture_are_other_data() -> None:
    shares = ("data.datasets.0.weight=2", "data.datasets.1.weight=1")
    other = recipe_from(MIXED.model_dump(mode="json"), list(shares), where="test")
    assert other.sha256() != MIXED.sha256()
    assert [(each.key, each.weight) for each in differences(MIXED, other)] == [
        ("data.datasets", "other data")
    ]


def test_a_deviation_that_no_function_explains_says_the_words_of_the_table() -> None:
    (sentence,) = deviations(BASE, changed("data.tokenizer"))
    assert "other data, other tokens for the same words" in sentence


def test_a_later_key_is_written_only_where_it_is_set() -> None:
    written = flat(load_recipe("pi05_libero").model_dump(mode="json"))
    assert {key.partition("=")[0] for key in LATER}.isdisjoint(written)
    assert {key.partition("=")[0] for key in LATER} <= flat(BASE.model_dump(mode="json")).keys()


def test_the_hash_of_a_published_recipe_is_what_it_was() -> None:
    # Runs of earlier versions resume under this one: their recipe's hash may not move.
    assert load_recipe("smoke").sha256() == "84977628ba3b5986986bd86005bd2f2824b57b13790cfad0b47917251ed48ae5"
    assert (
        load_recipe("pi05_libero").sha256()
        == "5ee329d453e14dc83387393212845b27b7fe99fe31daf4c06db93bbfbdd4720e"
    )
    assert (
        load_recipe("pi05_libero_lora").sha256()
        == "eb32786d99619458aef2bdd5f25b8869d00b73a1e4e636e3ffeaf79e628c7e88"
    )
