"""Tests metadata and tables of strangers that say the same in another form.

What LeRobot's reader reads is read as it reads it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data.dataset import describe
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import change_info, each_table, opened, recipe, refused, set_feature

VERSIONS = ("v2.1", "v3.0")


INFO = {
    "a width without d": {"data_path": "data/chunk-{episode_chunk:03}/episode_{episode_index:06}.parquet"},
    "no size of chunks": {"chunks_size": None},
    "no total": {"total_frames": None, "total_episodes": None},
}


@pytest.mark.parametrize("name", INFO)
def test_metadata_that_say_the_same_otherwise_are_read(tmp_path: Path, name: str) -> None:
    root = writer.write(tmp_path / "set")
    change_info(root, **INFO[name])
    assert describe(recipe(root)).frames == 16


def test_a_double_is_a_float(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    set_feature(root, "action", dtype="double")
    assert describe(recipe(root)).features["action"].dtype == "float64"


@pytest.mark.parametrize("changes", [{"dtype": "half"}, {"shape": [2, 1, 3]}, {"shape": []}])
def test_the_only_actions_are_not_to_be_mapped_to_others(tmp_path: Path, changes: dict) -> None:
    root = writer.write(tmp_path / "set")
    set_feature(root, "action", **changes)
    refusal = refused(root)
    assert refusal.code == "dataset-feature-invalid"
    assert "a vector: [width]" in str(refusal.need)
    assert "give its name, dtype and shape in meta/info.json" in refusal.fix


def test_actions_that_are_not_declared_are_to_be_declared(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    change_info(root, features={name: feature for name, feature in features.items() if name != "action"})
    refusal = refused(root)
    assert refusal.code == "dataset-feature-missing"
    assert "give its name, dtype and shape in meta/info.json" in refusal.fix


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (pa.list_view(pa.float32()), [2]),
        (pa.large_list_view(pa.float32()), [2]),
        (pa.list_(pa.list_(pa.float32())), [1, 2]),
        (pa.list_(pa.list_(pa.float32(), 1)), [2, 1]),
        (pa.fixed_shape_tensor(pa.float32(), [2]), [2]),
    ],
    ids=str,
)
def test_every_layout_of_a_list_is_a_vector(tmp_path: Path, kind: pa.DataType, shape: list[int]) -> None:
    """Also a vector in a vector, as the arrays of Hugging Face's datasets have it, and Arrow's tensors."""
    root = writer.write(tmp_path / "set")
    before = opened(root).columns.actions

    def laid(table: pa.Table) -> pa.Array:
        rows = np.array(table.column("action").to_pylist(), np.float32)
        if isinstance(kind, pa.BaseExtensionType):
            return pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
        return pa.array(rows.reshape(-1, *shape).tolist(), kind)

    each_table(root, "action", laid)
    set_feature(root, "action", shape=shape)
    assert np.array_equal(opened(root).columns.actions, before)
    assert describe(recipe(root)).features["action"].shape == [2]


def test_a_null_in_a_vector_of_a_vector_is_told_with_its_row(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    rows = [[[1.0, float(n)]] if n != 3 else [[1.0, None]] for n in range(7)]
    each_table(root, "action", lambda table: pa.array(rows[: table.num_rows]))
    assert "row 3 holds a null" in refused(root).what


def test_a_feature_without_a_shape_stands_beside_those_that_are_mapped(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    del features["cam"]["shape"]
    odd = {"note": {"dtype": "string"}, "x": {"dtype": "float32", "shape": None}}
    change_info(root, features=features | odd)
    assert describe(recipe(root)).findings == []
    assert refused(root, **{"actions": "x"}).code == "dataset-feature-invalid"


@pytest.mark.parametrize(
    ("version", "lacking", "reads"),
    [
        ("v2.1", ["index", "frame_index"], True),
        ("v3.0", ["frame_index"], True),
        ("v3.0", ["index"], False),
        ("v2.1", ["task_index"], False),
    ],
)
def test_columns_without_which_lerobot_reads_are_taken_from_the_order_of_the_rows(
    tmp_path: Path, version: str, lacking: list[str], reads: bool
) -> None:
    root = writer.write(tmp_path / "set", version=version, images="files")
    whole, before = describe(recipe(root)), opened(root).columns
    for path in sorted((root / "data").rglob("*.parquet")):
        pq.write_table(pq.read_table(path).drop_columns(lacking), path)
    if not reads:
        assert refused(root).code == "dataset-feature-missing"
        return
    found, after = describe(recipe(root)), opened(root)
    (finding,) = [said for said in found.findings if said not in whole.findings]
    assert f"no column {' and '.join(sorted(lacking))}" in finding
    assert np.array_equal(after.columns.actions, before.actions)
    assert np.array_equal(after.image(8, "cam"), writer.frame(8))


@pytest.mark.parametrize(("version", "refuses"), [("v2.0", False), ("v2.1", False), ("v3.0", True)])
def test_rows_that_each_episode_numbers_from_0_are_read_as_lerobot_does(
    tmp_path: Path, version: str, refuses: bool
) -> None:
    """Its reader of version 2 looks up no frame by `index`, that of version 3 does."""
    root = writer.write(tmp_path / "set", version=version)
    each_table(root, "index", lambda table: table.column("frame_index").combine_chunks())
    if refuses:
        assert refused(root).code == "dataset-index-invalid"
    else:
        assert describe(recipe(root)).findings == []


def test_pictures_lie_where_info_says(tmp_path: Path) -> None:
    """As a recorder has it that writes JPEG; a template that cannot be filled is none."""
    root = writer.write(tmp_path / "set", images="files")
    change_info(root, image_path="images/{image_key}/{nobody}.png")
    assert describe(recipe(root)).findings == []
    for path in sorted((root / "images").rglob("*.png")):
        Image.open(io.BytesIO(path.read_bytes())).save(path.with_suffix(".jpg"))
        path.unlink()
    assert refused(root).code == "image-missing"
    change_info(root, image_path="images/{image_key}/episode_{episode_index:06d}/frame_{frame_index:06d}.jpg")
    assert describe(recipe(root)).frames == 16


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recording_that_was_stopped_before_its_first_episode_is_told_as_that(
    tmp_path: Path, version: str
) -> None:
    """LeRobot writes info.json when it starts, and nothing else."""
    root = writer.write(tmp_path / "set", version=version)
    change_info(root, total_episodes=0, total_frames=0)
    assert describe(recipe(root)).frames == 16
    for name in ("tasks.jsonl", "episodes.jsonl", "tasks.parquet", "episodes/chunk-000/file-000.parquet"):
        (root / "meta" / name).unlink(missing_ok=True)
    assert refused(root).code == "dataset-empty"
