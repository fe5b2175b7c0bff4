"""Tests what --set and a recipe's file give a key that holds text."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.recipe.load import load_recipe, to_yaml
from harness.verbs.answers import with_dataset


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.prompt=pick up block #3", "pick up block #3"),
        ("data.prompt=Pick: the block", "Pick: the block"),
        ("data.prompt='it''s #3'", "it's #3"),
        ("data.asset_id=20241105", "20241105"),
        ("data.asset_id=007", "007"),
        ('data.asset_id="1e5"', "1e5"),
        ("data.revision=1e5", "1e5"),
        ("data.revision=null", None),
        ("weights.source=#1", "#1"),
        ("weights.source=@1", "@1"),
        ("weights.source=~", None),
        ("weights.source=~/pi05/params", "/home/me/pi05/params"),
        ("data.tokenizer=~/a.model", "/home/me/a.model"),
        ("data.datasets=[{dataset: 2024-11-05}, {dataset: b}]", "2024-11-05"),
        ("data.state=[a, b]", ["a", "b"]),
    ],
)
def test_text_is_taken_as_it_is_typed(override: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    part, _, key = override.partition("=")[0].partition(".")
    found = getattr(getattr(load_recipe("smoke", [override]), part), key)
    assert (found[0].dataset if key == "datasets" else found) == value


@pytest.mark.parametrize("name", ["20241105", "frames #2", "a: b", "nan"])
def test_a_dataset_may_have_any_name(name: str) -> None:
    assert load_recipe("smoke", with_dataset(None, name)).data.dataset == name
    mixed = ["data.datasets=[{dataset: a}, {dataset: b}]", f"data.datasets.1.dataset={name}"]
    assert load_recipe("smoke", mixed).data.datasets[1].dataset == name


def test_a_recipes_own_home_is_found_and_a_received_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = to_yaml(load_recipe("smoke")).replace("source: null", "source: ~/params")
    (file := tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(str(file)).weights.source == "/home/me/params"
    assert load_recipe(str(file), root=tmp_path).weights.source == "~/params"


@pytest.mark.parametrize(("text", "says"), [("asset_id: 7", "in quotes"), ("", "nothing")])
def test_what_a_file_lacks_is_said(text: str, says: str, tmp_path: Path) -> None:
    whole = to_yaml(load_recipe("smoke")).replace("asset_id: sample", text) if text else ""
    (file := tmp_path / "recipe.yaml").write_text(whole)
    with pytest.raises(HarnessError) as caught:
        load_recipe(str(file))
    assert says in f"{caught.value.what} {caught.value.got}"
