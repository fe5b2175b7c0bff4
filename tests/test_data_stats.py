"""Tests statistics: the golden values, independent numpy over explicit chunks, and degenerate cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.artifacts import Dataset, DimensionStats, NormStats
from harness.data import stats
from harness.data.dataset import describe
from harness.data.lerobot import open_dataset
from harness.data.metadata import Episode
from harness.data.pooled import Part, pooled
from harness.data.rows import Block
from harness.data.space import Space
from harness.data.tally import chunk_weights
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from tests.support import lerobot_writer as writer

HERE = Path(__file__).parent
MAPPED = [
    "data.state=observation.state",
    "data.actions=action",
    "data.cameras.base_0_rgb=cam",
    "data.cameras.left_wrist_0_rgb=null",
]


def _artifact(root: Path) -> Dataset:
    """A description without looking at images: the golden fixtures hold few of them."""
    return describe(load_recipe("smoke")).model_copy(update={"path": str(root)})


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_equals_the_exact_golden_values(version: str) -> None:
    found = stats.compute(load_recipe("smoke"), _artifact(HERE / "fixtures" / f"lerobot_{version}_image"))
    golden = json.loads((HERE / "golden" / f"lerobot_{version}_image_norm_stats.json").read_text())["exact"]
    for key, values in golden.items():
        for name, value in values.items():
            np.testing.assert_allclose(
                getattr(found.norm_stats[key], name), value, rtol=0, atol=1e-6, err_msg=f"{key} {name}"
            )
    assert (found.frames, found.action_horizon) == (52, 10)


@pytest.mark.parametrize("horizon", [1, 3, 10])
@pytest.mark.parametrize("block_rows", [1, 6, 1 << 18])
def test_equals_numpy_over_chunks_that_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, horizon: int, block_rows: int
) -> None:
    """Also in several passes over blocks that hold less than the dataset."""
    monkeypatch.setattr(stats, "BLOCK_ROWS", block_rows)
    root = writer.write(tmp_path, lengths=(7, 1, 12, 4))
    recipe = load_recipe("smoke", [f"data.dataset={root}", *MAPPED, f"model.action_horizon={horizon}"])
    found = stats.compute(recipe, describe(recipe))
    data = open_dataset(root, state="observation.state", actions="action")
    chunks = np.concatenate([data.action_chunk(i, horizon)[0] for i in range(data.frames)])
    for key, values in (
        ("state", writer.numbers(24)[0].astype(np.float64)),
        ("actions", chunks.astype(np.float64)),
    ):
        got = found.norm_stats[key]
        np.testing.assert_allclose(got.mean, values.mean(axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.std, values.std(axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.q01, np.quantile(values, 0.01, axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.q99, np.quantile(values, 0.99, axis=0), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(got.min, values.min(axis=0))
        np.testing.assert_array_equal(got.max, values.max(axis=0))


@pytest.mark.parametrize(
    "values", [[0.0], [-0.0, 0.0, -1e-38, 3e38, -3e38], [1.0, 1.0, 1.0, 2.0], list(np.linspace(-2, 5, 301))]
)
def test_quantiles_of_awkward_values(values: list[float]) -> None:
    column = np.array(values, np.float32)[:, None]
    block = Block([Episode(0, 0, len(column), "x", 0, {})], column, column, np.zeros(0), np.zeros(0))
    found = pooled([Part(lambda: iter([block]), 1, ("state",), Space(None, ()))], 1)["state"]
    np.testing.assert_allclose(
        found.q01 + found.q99, np.quantile(column[:, 0].astype(np.float64), [0.01, 0.99]), rtol=1e-12
    )


def test_weights_count_the_places_in_chunks() -> None:
    """Against counting: 5 frames, horizon 3, then an episode shorter than the horizon."""
    expected = [1, 2, 3, 3, 6, 1, 5]
    assert chunk_weights([5, 2], 3).tolist() == expected


def _with_actions(root: Path, values: np.ndarray) -> Path:
    path = writer.write(root, lengths=(len(values),)) / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("action")
    actions = pa.array(values.astype(np.float32).tolist(), type=table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), actions), path)
    return root


def _compute(root: Path, *overrides: str) -> NormStats:
    recipe = load_recipe("smoke", [f"data.dataset={root}", *MAPPED, "model.action_horizon=1", *overrides])
    return stats.compute(recipe, describe(recipe))


def test_a_constant_and_a_nearly_constant_dimension_are_found(tmp_path: Path) -> None:
    values = np.stack([np.full(300, 0.5), np.full(300, 0.25)], axis=1)
    # One frame in 300 moves: beyond both quantiles, it would reach 1.5 million.
    values[17, 1] = 1.0
    found = _compute(_with_actions(tmp_path, values)).findings
    assert [(f.key, f.dimension) for f in found] == [("actions", 0), ("actions", 1)]
    assert found[1].largest_normalized == pytest.approx(0.75 / 1e-6 * 2 - 1)
    assert all(f.fix for f in found)


def test_an_outlier_is_found_and_healthy_dimensions_are_not(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    values[5, 0] = 100.0
    found = _compute(_with_actions(tmp_path, values)).findings
    assert [(f.key, f.dimension) for f in found] == [("actions", 0)]
    assert 90 < (found[0].largest_normalized or 0) < 110


def test_degenerate_dimensions_can_be_an_error_or_pass_through(tmp_path: Path) -> None:
    values = np.stack([np.full(300, 0.5), np.linspace(-1, 1, 300)], axis=1)
    root = _with_actions(tmp_path, values)
    with pytest.raises(HarnessError) as caught:
        _compute(root, "data.degenerate_dimensions=error")
    assert caught.value.code == "stats-degenerate"
    passed = _compute(root, "data.degenerate_dimensions=pass_through").norm_stats["actions"]
    assert (passed.mean[0], passed.std[0], passed.q01[0], passed.q99[0]) == (0, 1, -1, 1)
    assert passed.q01[1] == _compute(root).norm_stats["actions"].q01[1] != -1


def test_openpi_form_has_exactly_its_text() -> None:
    """The text that openpi's own serializer wrote for these numbers."""
    one = DimensionStats(mean=[0.0], std=[1.0], q01=[-1.0], q99=[1.5], min=[-2.0], max=[2.0])
    body = ",\n".join(
        f'      "{name}": [\n        {value}\n      ]'
        for name, value in (("mean", 0.0), ("std", 1.0), ("q01", -1.0), ("q99", 1.5))
    )
    expected = (
        '{\n  "norm_stats": {\n    "state": {\n'
        + body
        + '\n    },\n    "actions": {\n'
        + body
        + "\n    }\n  }\n}"
    )
    assert (
        stats.to_openpi_json(NormStats(norm_stats={"state": one, "actions": one}, frames=1, action_horizon=1))
        == expected
    )


def test_needs_neither_jax_nor_a_decoder() -> None:
    """In a fresh process: describing the dataset may decode, computing its statistics may not import what
    decodes.
    """
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.recipe.load import load_recipe\nfrom harness.data"
        " import stats\nfrom harness.artifacts import Dataset\nfrom harness.data.sample import"
        " sample_dataset_path\ndataset ="
        " Dataset.model_construct(path=str(sample_dataset_path()))\nstats.compute(load_recipe('smoke'),"
        " dataset)\nprint(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'PIL', 'av',"
        " 'grain', 'torch', 'tensorflow'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
