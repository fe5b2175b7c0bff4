"""Tests the table of cards: each card and recipe, in Markdown and as a picture.

Figures that the atlas does not know are marked as unknown.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from harness.errors import HarnessError
from harness.plan import matrix
from harness.plan.atlas import Atlas
from harness.plan.cards import CARDS
from harness.plan.matrix import RECIPES, Cell, cells, words
from harness.show.cards_picture import picture
from harness.show.matrix import markdown
from tests.support.planned import Formula


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.setattr(matrix, "not_asked", Formula())
    return cells(Atlas([]))


def test_the_table_has_every_card_by_memory_and_larger_ones_deviate_no_more(table: list[Cell]) -> None:
    assert [cell.card for cell in table if cell.recipe == RECIPES[0]] == sorted(
        CARDS, key=lambda key: (CARDS[key].memory_bytes, key)
    )
    full = [len(cell.plan.deviations) for cell in table if cell.recipe == "pi05_libero" and cell.plan]
    assert full == sorted(full, reverse=True)
    assert full[-1] == 0
    text = markdown(table, words, "{} GiB".format)
    assert len(text.splitlines()) == 2 + len(CARDS)
    assert all(line.count("|") == 3 + len(RECIPES) for line in text.splitlines())


def test_the_picture_is_one(table: list[Cell], tmp_path: Path) -> None:
    path = tmp_path / "hardware.png"
    picture(table, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        assert len(image.convert("RGB").getcolors(2**24) or []) > 10


def test_what_the_atlas_does_not_know_is_not_invented() -> None:
    assert {cell.verdict for cell in cells(Atlas([]))} == {"not in the atlas"}
    stale = Atlas([])
    stale.refused = "of another step"
    with pytest.raises(HarnessError) as caught:
        cells(stale)
    assert caught.value.code == "atlas-stale"
