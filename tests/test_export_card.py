"""Tests that a model card says how the policy is run as it was trained: a row for each key that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checkpoint.card_keys import key_rows
from harness.checkpoint.locate import locate
from harness.predict.deliver import Wish, deliver
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support.exported import recipe_of_kind, write_checkpoint
from tests.support.mixtures import mixture


def rows(recipe: Recipe, target: str) -> dict[str, str]:
    return dict(key_rows(recipe, target))


@pytest.mark.parametrize("target", ["openpi-jax", "openpi-pytorch"])
def test_for_openpi_the_card_names_the_training_configuration(target: str) -> None:
    aloha = rows(load_recipe("pi05_aloha"), target)
    assert "discrete_state_input=True" in aloha["state in the prompt"]
    # openpi writes the mask of ALOHA as 6, -1, 6, -1; what follows the last relative dimension is not.
    assert "DeltaActions(make_bool_mask(6, -1, 6))" in aloha["relative actions"]
    assert "AbsoluteActions(make_bool_mask(6, -1, 6))" in aloha["relative actions"]
    assert "adapt_to_pi=True" in aloha["ALOHA's joints"]
    assert 'InjectDefaultPrompt("uncap the pen")' in aloha["prompt"]
    assert 'AssetsConfig(asset_id="trossen")' in aloha["statistics"]
    # openpi's own default for π0.5 is True.
    assert "discrete_state_input=False" in rows(load_recipe("pi05_libero"), target)["state in the prompt"]


def test_for_lerobot_the_card_says_what_the_pipelines_do_and_what_is_left_to_a_person() -> None:
    recipe = load_recipe("pi05_droid", ["data.relative=0-6", "data.prompt=put it there"])
    said = rows(recipe, "lerobot")
    assert said["state in the prompt"].startswith("yes")
    assert said["state"] == "observation.state is joint_position, then gripper_position"
    assert "n_action_steps is 1" in said["relative actions"]
    assert said["prompt"] == '"put it there": give it as the task'
    assert "without underscores" in rows(load_recipe("pi05_libero"), "lerobot")["state in the prompt"]


def test_the_card_says_with_which_delays_it_was_trained() -> None:
    recipe = load_recipe("pi05_libero", ["train.action_delay.max=4"])
    assert "openpi's sampler gives none" in rows(recipe, "openpi-jax")["trained with delays"]
    assert "rtc_training_max_delay is 4" in rows(recipe, "lerobot")["trained with delays"]
    assert "trained with delays" not in rows(load_recipe("pi05_libero"), "lerobot")


def test_of_a_mixture_the_card_says_whose_a_key_is() -> None:
    both = {"default_prompt": "go"}
    said = rows(
        mixture({"dataset": "a", "relative": [0], "weight": 2} | both, {"dataset": "b", "weight": 1} | both),
        "openpi-jax",
    )
    assert said["mixture of"] == "a (2), b (1)"
    assert "make_bool_mask(1)" in said["relative actions, a"]
    assert "prompt without a task" in said
    assert said["statistics"].startswith("of the mixture")


def test_the_rows_stand_in_the_card(tmp_path: Path) -> None:
    given = tmp_path / "my_stats.json"
    recipe = recipe_of_kind("full", f"data.norm_stats={given}", "data.prompt=a | b")
    write_checkpoint(tmp_path / "5", recipe)
    deliver(locate(str(tmp_path / "5")), recipe, tmp_path / "out", Wish("lerobot"), lambda _: None)
    card = (tmp_path / "out/README.md").read_text()
    assert "| statistics | given (my_stats.json), in both pipelines |" in card
    assert '| prompt | "a \\| b": give it as the task |' in card
