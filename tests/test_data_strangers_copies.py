"""Tests datasets of strangers as they lie on disks: partly fetched, edited, named by another directory."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from harness.data.dataset import describe
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    SECOND,
    V3_EPISODES,
    change_column,
    change_info,
    opened,
    recipe,
    refused,
)

VERSIONS = ("v2.1", "v3.0")


def _declare(root: Path, name: str, **feature: object) -> None:
    path = root / "meta/info.json"
    features = json.loads(path.read_text())["features"]
    change_info(root, features=features | {name: features.get(name, {"shape": [48, 64, 3]}) | feature})


@pytest.mark.parametrize(("images", "folder"), [("parquet", "data"), ("video", "videos")])
def test_all_episodes_that_were_not_fetched_are_named_at_once(
    tmp_path: Path, images: str, folder: str
) -> None:
    root = writer.write(tmp_path / "set", images=images, lengths=(7, 5, 4, 6, 3))
    for path in sorted((root / folder).rglob("episode_*"))[2:]:
        path.unlink()
    refusal = refused(root)
    assert refusal.code == "dataset-file-missing"
    assert ", and 2 more of" in refusal.what
    assert refusal.fix.endswith("leave episodes 2-4 out: --set 'data.episodes.exclude=[2-4]'")
    assert describe(recipe(root, **{"episodes.exclude": "[2-4]"})).episodes == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_the_usual_place_of_videos_need_not_be_said(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path / "set", version=version, images="video")
    change_info(root, video_path=None)
    assert describe(recipe(root)).findings == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_video_that_no_camera_is_mapped_to_need_not_be_there(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path / "set", version=version)
    _declare(root, "depth", dtype="video")
    assert describe(recipe(root)).findings == []
    refusal = refused(root, **{"cameras.base_0_rgb": "depth"})
    assert "depth" in refusal.what + str(refusal.need)


def test_an_episode_without_a_video_of_the_camera_can_be_left_out(tmp_path: Path) -> None:
    """As of merged datasets, of which one has a camera less."""
    root = writer.write(tmp_path / "set", version="v3.0", images="video")
    rows = pq.read_table(root / V3_EPISODES).to_pylist()
    rows[2] |= dict.fromkeys([key for key in rows[2] if key.startswith("videos/cam/")])
    pq.write_table(pa.Table.from_pylist(rows), root / V3_EPISODES)
    assert refused(root).fix.endswith("leave episode 2 out: --set 'data.episodes.exclude=[2]'")
    assert describe(recipe(root, **{"episodes.exclude": "[2]"})).episodes == 2


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("images", "says", "is_"), [("video", "image", "video"), ("parquet", "video", "image")]
)
def test_a_camera_of_the_other_kind_is_told_as_that(
    tmp_path: Path, version: str, images: str, says: str, is_: str
) -> None:
    """Its files were told as missing."""
    root = writer.write(tmp_path / "set", version=version, images=images)
    _declare(root, "cam", dtype=says)
    refusal = refused(root)
    assert (refusal.code, refusal.need) == ("dataset-feature-invalid", f'"dtype": "{is_}"')
    _declare(root, "cam", dtype=is_)
    assert describe(recipe(root)).findings == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("images", ["parquet", "files", "video"])
def test_where_frames_were_taken_out_the_others_keep_their_pictures(
    tmp_path: Path, version: str, images: str
) -> None:
    """As in LeRobot, which does not look at frame_index, nor in version 2 at index."""
    root = writer.write(tmp_path / "set", version=version, images=images)
    before = [opened(root).image(i, "cam") for i in range(16) if i not in (2, 9, 14)]
    at = 0
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        table = table.filter(pc.not_equal(table["frame_index"], 2))
        if version == "v3.0":
            index = pa.array(range(at, at + len(table)))
            table = table.set_column(table.schema.get_field_index("index"), "index", index)
        at += len(table)
        pq.write_table(table, path)
    _lengths(root, version, (6, 4, 3))
    (gaps, skips) = describe(recipe(root)).findings
    assert "3 of 10 gaps between rows differ" in gaps
    assert "frame_index passes over numbers 3 times" in skips
    assert all(np.array_equal(opened(root).image(i, "cam"), image) for i, image in enumerate(before))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_that_was_shortened_beside_its_video_is_a_finding(tmp_path: Path, version: str) -> None:
    """Rows that were numbered anew show the pictures of others."""
    root = writer.write(tmp_path / "set", version=version, images="video")
    firsts = dict(enumerate((0, 3, 8)))
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        table = table.filter(
            pc.or_(pc.not_equal(table["episode_index"], 0), pc.less(table["frame_index"], 3))
        )
        index = [
            firsts[episode] + frame
            for episode, frame in zip(
                table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True
            )
        ]
        at = table.schema.get_field_index("index")
        pq.write_table(table.set_column(at, "index", pa.array(index, pa.int64())), path)
    _lengths(root, version, (3, 5, 4))
    (finding,) = describe(recipe(root)).findings
    assert "the video of one episode goes on after the last row, that of episode 0 for 4 frames" in finding


def _lengths(root: Path, version: str, lengths: tuple[int, ...]) -> None:
    """Other lengths of the episodes in the metadata."""
    change_info(root, total_frames=sum(lengths))
    firsts = np.cumsum((0, *lengths[:-1])).tolist()
    if version == "v3.0":
        rows = pq.read_table(root / V3_EPISODES).to_pylist()
        for row, first, length in zip(rows, firsts, lengths, strict=True):
            row.update(length=length, dataset_from_index=first)
        pq.write_table(pa.Table.from_pylist(rows), root / V3_EPISODES)
    else:
        rows = [{"episode_index": e, "tasks": [], "length": length} for e, length in enumerate(lengths)]
        (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("lengths", [(0, 7, 5, 4), (7, 5, 0, 4), (7, 5, 4, 0)])
def test_an_episode_without_frames_is_left_out(
    tmp_path: Path, version: str, lengths: tuple[int, ...]
) -> None:
    """As whoever stops a recording at once leaves it."""
    root = writer.write(tmp_path / "set", version=version, lengths=tuple(n or 1 for n in lengths))
    at = 0
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        table = table.filter(pc.not_equal(table["episode_index"], lengths.index(0)))
        index = pa.array(range(at, at + len(table)), pa.int64())
        pq.write_table(table.set_column(table.schema.get_field_index("index"), "index", index), path)
        at += len(table)
    _lengths(root, version, lengths)
    found = describe(recipe(root))
    assert (found.episodes, found.frames) == (3, 16)
    assert found.findings == [f"episodes without frames are left out: [{lengths.index(0)}]"]
    assert opened(root).image(15, "cam").shape == (48, 64, 3)


def test_decimals_are_numbers(tmp_path: Path) -> None:
    """DuckDB makes them of `0.1 * frame_index`."""
    root = writer.write(tmp_path / "set", images="video")
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        tenths = pa.array([Decimal(i) / 10 for i in range(len(table))], pa.decimal128(10, 1))
        pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", tenths), path)
    assert describe(recipe(root)).findings == []


def test_numbers_of_frames_that_do_not_grow_are_refused(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    change_column(root / SECOND, "frame_index", lambda _: [0, 2, 1, 3, 4])
    refusal = refused(root)
    assert (refusal.code, refusal.got, refusal.need) == ("dataset-index-invalid", "2", "1")


@pytest.mark.parametrize("at", [".", "..", "../..", "meta", "data/chunk-000"])
def test_a_directory_near_a_dataset_is_told_where_it_is(tmp_path: Path, at: str) -> None:
    root = writer.write(tmp_path / "lab/a set")
    if at == ".":
        (root / "meta/info.json").unlink()
    refusal = refused((root / at).resolve())
    assert refusal.code == "not-a-dataset"
    assert (refusal.fix == f"--set 'data.dataset={root}'") == (at != ".")


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("episode_0.hdf5", "HDF5"),
        ("x-train.tfrecord-00000-of-00001", "RLDS"),
        ("replay_buffer.zarr", "Zarr"),
        ("run.mcap", "ROS"),
        ("meta_data", "LeRobot's format 1"),
    ],
)
def test_another_format_is_named(tmp_path: Path, name: str, format_: str) -> None:
    (tmp_path / name).mkdir()
    refusal = refused(tmp_path)
    assert (refusal.code, format_ in str(refusal.got)) == ("not-a-dataset", True)
    assert "convert it" in refusal.fix


def test_a_snapshot_without_its_blobs_is_told_as_that(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    (root / "meta/info.json").unlink()
    (root / "meta/info.json").symlink_to("../../../blobs/0")
    refusal = refused(root)
    assert (refusal.code, refusal.got) == ("not-a-dataset", "meta/info.json is a link that leads nowhere")
    assert "blobs/" in refusal.fix
