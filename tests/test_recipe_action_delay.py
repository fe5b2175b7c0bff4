"""Tests the recipe key of simulated delays: off by default, said in one way, refused where it cannot be."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.openpi.job import check_upstream_can
from harness.plan.atlas import step_key
from harness.recipe.differences import differences
from harness.recipe.load import load_recipe

PLAIN = load_recipe("smoke")


@pytest.mark.parametrize("off", ["train.action_delay=null", "train.action_delay.max=0"])
def test_no_delay_is_the_recipe_of_earlier_versions(off: str) -> None:
    recipe = load_recipe("smoke", [off])
    assert recipe == PLAIN
    assert recipe.sha256() == PLAIN.sha256()
    assert recipe.train.most_delay == 0
    assert "action_delay" not in recipe.model_dump_json()
    assert step_key(recipe) == step_key(PLAIN)


def test_a_delay_is_another_experiment_and_another_step() -> None:
    recipe = load_recipe("smoke", ["train.action_delay.max=4"])
    assert recipe.train.most_delay == 4
    ((key, weight, _),) = [(each.key, each.weight, each.why) for each in differences(PLAIN, recipe)]
    assert key.startswith("train.action_delay")
    assert weight == "another experiment"
    assert recipe.sha256() != PLAIN.sha256()
    assert recipe.sha256() != load_recipe("smoke", ["train.action_delay.max=3"]).sha256()
    # Its memory was never asked of the compiler, so the atlas has no answer for it.
    assert step_key(recipe) != step_key(PLAIN)


@pytest.mark.parametrize(
    ("value", "words"),
    [("10", "leaves nothing to learn"), ("-1", "greater than or equal to 0"), ("two", "integer")],
)
def test_a_delay_that_cannot_be_is_refused_with_the_key(value: str, words: str) -> None:
    with pytest.raises(HarnessError, match=r"train\.action_delay\.max") as refusal:
        load_recipe("smoke", [f"train.action_delay.max={value}"])
    assert refusal.value.code == "recipe-invalid"
    assert words in str(refusal.value)


def test_a_longer_chunk_may_have_a_longer_delay() -> None:
    recipe = load_recipe("smoke", ["train.action_delay.max=10", "model.action_horizon=11"])
    assert recipe.train.most_delay == 10


def test_openpis_trainer_refuses_the_key() -> None:
    recipe = load_recipe("pi05_libero", ["train.action_delay.max=4"])
    with pytest.raises(HarnessError, match=r"train\.action_delay") as refusal:
        check_upstream_can(recipe)
    assert "--set train.action_delay=null" in refusal.value.fix
