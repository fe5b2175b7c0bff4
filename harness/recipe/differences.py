"""Lists the keys in which two recipes differ, and how each difference affects their comparison.

It gives facts about each key, and no verdict.
"""

from __future__ import annotations

from typing import NamedTuple

from harness.recipe.load import load_recipe
from harness.recipe.meaning import HEAVIEST_FIRST, Weight, changed_keys, flat, meaning
from harness.recipe.schema import Recipe

PUBLISHED = "pi05_libero"


class Difference(NamedTuple):
    key: str
    published: object
    here: object
    weight: Weight
    why: str


def differences(published: Recipe, here: Recipe) -> list[Difference]:
    """Every key in which the two recipes differ, except names and descriptions.

    Keys that make another experiment come first.
    """
    before, after = (
        flat(each.model_dump(mode="json", exclude={"name", "description"})) for each in (published, here)
    )
    found = [
        Difference(key, before.get(key, "–"), after.get(key, "–"), *meaning(key))
        for key in changed_keys(before, after)
    ]
    return sorted(found, key=lambda difference: HEAVIEST_FIRST.index(difference.weight))


def differences_from_published(recipe: Recipe) -> list[Difference]:
    """Differences from the published recipe."""
    return differences(load_recipe(PUBLISHED), recipe)
