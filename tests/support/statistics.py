"""Statistics of the sample dataset, and files of them."""

from __future__ import annotations

import json
from pathlib import Path

from harness.artifacts import Dataset, NormStats
from harness.data.lerobot import open_dataset
from harness.data.sample import sample_dataset_path
from harness.data.stats import compute, to_openpi_json
from harness.recipe.load import load_recipe

# --- what our data become under their statistics
# ----------------------------------------------------------------------------


def sample_stats(mode: str = "quantile") -> tuple[NormStats, dict]:
    """Statistics of the sample dataset, and what `compare_statistics` needs to count its frames."""
    recipe = load_recipe("smoke", [f"data.normalization={mode}"])
    opened = open_dataset(sample_dataset_path())
    stats = compute(recipe, Dataset.model_construct(path=str(sample_dataset_path())))
    return stats, {"mode": mode, "blocks": opened.blocks()}


def core_of(stats: NormStats) -> dict:
    return json.loads(to_openpi_json(stats))["norm_stats"]


def write_json(path: Path, body: object) -> Path:
    path.write_text(json.dumps(body))
    return path
