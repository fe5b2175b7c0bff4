"""Tests the recipe's part that holds episodes out."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.recipe.load import load_recipe, recipe_from, to_yaml
from harness.recipe.schema import Recipe


def with_episodes(value: str) -> Recipe:
    return load_recipe("smoke", [f"train.holdout.episodes={value}"])


@pytest.mark.parametrize(("value", "read"), [("2", 2), ("0.25", 0.25), ("[0, 3-4]", [0, "3-4"])])
def test_a_number_a_share_and_a_list_are_read(value: str, read: object) -> None:
    holdout = with_episodes(value).train.holdout
    assert holdout is not None
    assert holdout.episodes == read


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.0", "true", "[]", "[-1]", "[4-2]", "some", "null", "[true]", "[x]"]
)
def test_other_forms_are_refused_by_key(value: str) -> None:
    with pytest.raises(HarnessError, match=r"train\.holdout\.episodes") as refusal:
        with_episodes(value)
    assert refusal.value.code == "recipe-invalid"


def test_a_list_is_kept_in_one_spelling() -> None:
    (one, other) = (with_episodes(value) for value in ("[7, 2-4, 3 - 5]", "[2-5, 7]"))
    assert one == other
    assert one.sha256() == other.sha256()


def test_a_recipe_without_a_holdout_has_the_hash_of_earlier_versions() -> None:
    plain = load_recipe("smoke")
    tree = plain.model_dump(mode="json")
    assert "holdout" not in tree["train"]
    assert recipe_from(tree, where="an earlier run").sha256() == plain.sha256()
    assert with_episodes("2").sha256() != plain.sha256()


def test_how_much_is_measured_does_not_change_the_hash() -> None:
    more = load_recipe("smoke", ["train.holdout={episodes: 2, frames: 7}"])
    assert more.sha256() == with_episodes("2").sha256()


def test_the_file_of_a_run_gives_the_holdout_back(tmp_path: pytest.TempPathFactory) -> None:
    recipe = with_episodes("[0, 3-4]")
    file = tmp_path / "recipe.yaml"  # type: ignore[operator]
    file.write_text(to_yaml(recipe))
    assert load_recipe(str(file)) == recipe
