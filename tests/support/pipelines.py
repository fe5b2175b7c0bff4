"""What LeRobot's pipelines are asked about an exported policy: frames, and the exports that are asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.checkpoint.locate import locate
from harness.predict.deliver import Wish, deliver
from harness.recipe.schema import Recipe
from tests.support.exported import recipe_of_kind, write_checkpoint

# Name of an export → the recipe's keys.
KINDS = {
    "plain": (),
    "state": ("model.discrete_state_input=true",),
    "relative": ("model.discrete_state_input=true", "data.relative=0-2,5"),
    "all_relative": ("data.relative=0-6",),
    "zscore": ("model.discrete_state_input=true", "data.relative=0-5", "data.normalization=zscore"),
}
TASKS = ("pick up the bowl", " Fold_the\ntowel ", "2 cups, State: 5;")


def exported_as(folder: Path, kind: str) -> tuple[Recipe, Path]:
    """The recipe of this kind, and its export for LeRobot in `folder`."""
    recipe = recipe_of_kind("full", *KINDS[kind])
    step = write_checkpoint(folder / kind / "5", recipe)
    deliver(locate(str(step)), recipe, folder / kind / "out", Wish("lerobot"), lambda _: None)
    return recipe, folder / kind / "out"


def frames(count: int = 24) -> dict[str, np.ndarray]:
    """States [F, 8], recorded chunks [F, 10, 7] and normalized ones, float32; the first states are edges.

    Those are the quantiles of `write_checkpoint`'s statistics, what lies beyond, and near their middle. On a
    bin's edge itself, such as the exact middle, LeRobot's float32 may fall on the other side.
    """
    random = np.random.default_rng(7)
    width = np.arange(8)
    low, high = -1.0 - width, 1.5 + width
    edges = [low, high, low + (high - low) * 0.501, low - 1, high + 1, low + (high - low) / 3]
    drawn = random.uniform(low - 0.2, high + 0.2, (count - len(edges), 8))
    return {
        "states": np.vstack([edges, drawn]).astype(np.float32),
        "recorded": random.uniform(-2, 2, (count, 10, 7)).astype(np.float32),
        "normalized": random.uniform(-1, 1, (count, 10, 7)).astype(np.float32),
    }
