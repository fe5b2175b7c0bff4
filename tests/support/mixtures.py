"""Recipes of mixtures over datasets that tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer

MAPPED = {
    "cameras": {"base_0_rgb": "cam", "left_wrist_0_rgb": None, "right_wrist_0_rgb": None},
    "state": "observation.state",
    "actions": "action",
}


def mixture(*members: dict[str, Any], sets: tuple[str, ...] = ()) -> Recipe:
    """The smoke recipe over these datasets, whose features are those of `lerobot_writer`."""
    listed = [MAPPED | member for member in members]
    return load_recipe("smoke", [f"data.datasets={json.dumps(listed)}", *sets])


def three(root: Path) -> list[str]:
    """Three datasets of 16, 30 and 9 frames: v2.1, v3.0, and one of videos."""
    writer.write(root / "a")
    writer.write(root / "b", version="v3.0", lengths=(9, 8, 7, 6))
    writer.write(root / "c", lengths=(5, 4), images="video")
    return [str(root / name) for name in "abc"]
