"""Two runs that read the same bytes in different directories."""

from __future__ import annotations

import copy
from typing import Any

from harness.artifacts import Manifest
from harness.artifacts.verdict import Compared
from harness.errors import HarnessError
from harness.recipe.load import recipe_from
from harness.recipe.meaning import flat
from harness.verify.fields import weights_digests

_NOTE = "the same bytes, elsewhere"


def with_moved(rows: list[Compared], a: Manifest, b: Manifest) -> list[Compared]:
    """The rows, of which those that say where bytes lie matter no more if both manifests have one hash of it.

    The recipes' hashes differ by that alone, if that of `b`'s recipe with `a`'s values is `a`'s.
    """
    ours, theirs = flat(a.recipe), flat(b.recipe)
    keys = [key for key in _same_bytes(a, b) if ours.get(key) != theirs.get(key)]
    if not keys:
        return rows
    moved = {f"recipe.{key}" for key in keys} | ({"weights.source"} if "weights.source" in keys else set())
    if _sha256(b.recipe, {key: ours.get(key) for key in keys}) == a.recipe_sha256:
        moved.add("recipe_sha256")
    return [
        row.model_copy(update={"matters": False, "note": _NOTE})
        if row.field in moved and row.status == "differs"
        else row
        for row in rows
    ]


def _same_bytes(a: Manifest, b: Manifest) -> list[str]:
    """The keys of the recipe that say where bytes lie which both manifests hash alike."""
    one, other = ({**weights_digests(each.weights), "source": ""} for each in (a, b))
    return [
        *(["data.dataset", "data.revision"] if a.dataset_sha256 == b.dataset_sha256 else []),
        *(["data.norm_stats"] if a.norm_stats_sha256 == b.norm_stats_sha256 else []),
        *(["weights.source"] if one == other and len(one) > 1 and "seed" not in one else []),
    ]


def _sha256(recipe: Any, values: dict[str, Any]) -> str | None:
    """The hash of the recipe with these values; None if it is no recipe then."""
    body = copy.deepcopy(dict(recipe))
    for key, value in values.items():
        part, _, name = key.partition(".")
        if not isinstance(body.get(part), dict):
            return None
        body[part] = {**body[part], name: value}
    try:
        return recipe_from(body, where="recipe").sha256()
    except HarnessError:
        return None
