"""The location of the statistics that a recipe gives: a file, or an asset of the base checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The name of the file is asked for by every verb, the schema only by those that read a recipe.
    from harness.recipe.schema import Recipe

BASE = "base"
FILE = "norm_stats.json"


def location_of_statistics(recipe: Recipe) -> str | None:
    """The path or the address of the given statistics; None if they are computed from the data.

    `base` is the asset `data.asset_id` of the checkpoint whose parameters are `weights.source`.
    Source: openpi src/openpi/training/checkpoints.py keeps assets/<asset id>/norm_stats.json beside params/.
    """
    given, source = recipe.data.norm_stats, recipe.weights.source
    if given is None:
        return None
    if given == BASE:
        head, _, last = (source or "").rstrip("/").rpartition("/")
        home = (head or ".") if last == "params" else (source or "").rstrip("/")
        return f"{home}/assets/{recipe.data.asset_id}/{FILE}"
    if "://" in given:
        return given if given.endswith((".json", ".jsonl")) else f"{given.rstrip('/')}/{FILE}"
    return os.path.expanduser(given)
