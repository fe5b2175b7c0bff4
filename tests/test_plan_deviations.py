"""Tests the deviations of a changed recipe: each key by name and meaning.

A key that does not change what is learned gives none.
"""

from __future__ import annotations

import pytest

from harness.recipe.deviations import deviations
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe

LORA = ["model.paligemma.lora={rank: 16, alpha: 16.0}", "model.action_expert.lora={rank: 32, alpha: 32.0}"]


def changed(*overrides: str, base: str = "pi05_libero") -> tuple[Recipe, Recipe]:
    return load_recipe(base), load_recipe(base, list(overrides))


@pytest.mark.parametrize(
    "overrides",
    [[], ["name=other", "description=x"], ["train.save_every_steps=7", "train.log_every_steps=7"]],
)
def test_the_same_experiment_has_none(overrides: list[str]) -> None:
    assert deviations(*changed(*overrides)) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.optimizer.moments=int8", ["train.optimizer.moments=int8", "8 bits", "tiny model"]),
        ("train.optimizer.moments=bfloat16", ["train.optimizer.moments=bfloat16", "rounded at random"]),
        ("train.ema_decay=null", ["train.ema_decay=null", "0.999", "last ones are deployed"]),
        ("train.ema_every_steps=8", ["train.ema_every_steps=8", "decay^8", "left out"]),
        ("train.ema_decay=0.99", ["train.ema_decay=0.99", "0.999"]),
        (
            "train.global_batch=64",
            [
                "train.global_batch=64",
                "instead of 256",
                "noisier, by a factor of 2.0",
                "1,920,000 samples instead of 7,680,000",
            ],
        ),
        ("train.steps=500", ["train.steps=500", "30,000", "inside the warm-up of 10,000"]),
        ("train.seed=7", ["train.seed=7", "other random numbers"]),
        (
            "train.trained=action_expert",
            ["train.trained=action_expert", "430.1 M of 3.35 B", "instead of 3.35 B", "not known"],
        ),
        ("data.augment=false", ["data.augment is False instead of True", "another experiment"]),
        ("train.optimizer.b2=0.999", ["train.optimizer.b2 is 0.999 instead of 0.95"]),
        (
            "data.cameras.left_wrist_0_rgb=null",
            ["data.cameras.left_wrist_0_rgb is absent instead of wrist_image"],
        ),
    ],
)
def test_each_key_is_named_and_explained(override: str, says: list[str]) -> None:
    (sentence,) = deviations(*changed(override))
    for words in says:
        assert words in sentence


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ("lora", ["467.0 M of 3.40 B", "rank 16 alpha 16 on paligemma", "90.9 %"]),
        ("lora_frozen_vision", ["of 3.40 B", "vision tower frozen", "not known"]),
    ],
)
def test_lora_instead_of_full_is_one_deviation_with_counts(trained: str, says: list[str]) -> None:
    (sentence,) = deviations(*changed(*LORA, f"train.trained={trained}"))
    for words in [*says, f"train.trained={trained}", "instead of 3.35 B", "bfloat16"]:
        assert words in sentence


def test_several_changes_are_several_sentences_the_greatest_first() -> None:
    sentences = deviations(
        *changed(
            *LORA,
            "train.trained=lora_frozen_vision",
            "train.frozen=int4",
            "train.ema_decay=null",
            "train.global_batch=32",
        )
    )
    assert [sentence.partition("=")[0] for sentence in sentences] == [
        "train.trained",
        "train.frozen",
        "train.ema_decay",
        "train.global_batch",
    ]


def test_other_adapters_are_named() -> None:
    (sentence,) = deviations(
        *changed(
            "model.paligemma.lora.rank=8",
            "model.paligemma.lora.scale_feed_forward=false",
            base="pi05_libero_lora",
        )
    )
    assert "rank 8 alpha 16 (not applied in the feed-forward) on paligemma" in sentence
    assert "rank 16 alpha 16 on paligemma" in sentence


@pytest.mark.parametrize("override", ["train.ema_every_steps=4", "train.frozen=int8"])
def test_a_key_without_effect_is_no_deviation(override: str) -> None:
    base = load_recipe("pi05_libero", ["train.ema_decay=null"])
    assert deviations(base, load_recipe("pi05_libero", ["train.ema_decay=null", override])) == []


def test_both_directions_are_said() -> None:
    one, other = changed("train.optimizer.moments=int8", "train.ema_decay=null")
    back = deviations(other, one)
    assert any("moments=float32 instead of int8" in sentence for sentence in back)
    assert any("train.ema_decay=0.999: an average" in sentence for sentence in back)
