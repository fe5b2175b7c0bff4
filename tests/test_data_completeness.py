"""Tests that every image and video is checked before a run, even those that no step may read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data import oddities
from harness.data.completeness import check_cameras
from harness.data.dataset import describe
from harness.data.lerobot import open_dataset
from harness.data.metadata import Episode
from harness.data.rows import Block
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer

# The last frame of the last episode.
LAST = {"v2.1": ("data/chunk-000/episode_000002.parquet", 3), "v3.0": ("data/chunk-000/file-001.parquet", 3)}


def _recipe(root: Path, **changes: str) -> Recipe:
    keys = {
        "dataset": str(root),
        "state": "observation.state",
        "actions": "action",
        "cameras.base_0_rgb": "cam",
        "cameras.left_wrist_0_rgb": "null",
    } | changes
    # A horizon longer than these short episodes would be a finding of its own.
    return load_recipe(
        "smoke", [*(f"data.{key}={value}" for key, value in keys.items()), "model.action_horizon=1"]
    )


def _check(root: Path) -> list[str]:
    return check_cameras(open_dataset(root, state="observation.state", actions="action"), ["cam"])


def _replace(path: Path, row: int, cell: bytes) -> None:
    table = pq.read_table(path)
    cells = table.column("cam").to_pylist()
    cells[row] = {"bytes": cell, "path": None}
    pq.write_table(
        table.set_column(
            table.schema.get_field_index("cam"), "cam", pa.array(cells, table.schema.field("cam").type)
        ),
        path,
    )


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(writer.frame(1)).save(buffer, format="JPEG")
    return buffer.getvalue()


PNG = writer.png(writer.frame(0))
DAMAGE: dict[str, tuple[bytes, str]] = {
    "cut in its data": (PNG[:-30], "image-corrupt"),
    "cut before its end": (PNG[:-12], "image-corrupt"),
    "one bit of its data": (PNG[:70] + bytes([PNG[70] ^ 4]) + PNG[71:], "image-corrupt"),
    "no data": (PNG[:33] + PNG[-12:], "image-corrupt"),
    "no header": (PNG[:8] + PNG[33:], "image-corrupt"),
    "nothing": (b"", "image-missing"),
    "text": (b"<html>not found</html>", "image-corrupt"),
    "a bomb": (PNG[:16] + (1 << 16).to_bytes(4, "big") * 2 + PNG[24:], "image-too-large"),
    "a JPEG that is cut": (_jpeg()[:-40], "image-corrupt"),
}


@pytest.mark.parametrize("version", LAST)
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_image_is_found_wherever_it_is(tmp_path: Path, version: str, name: str) -> None:
    root = writer.write(tmp_path, version=version)
    assert _check(root) == []
    file, row = LAST[version]
    cell, code = DAMAGE[name]
    _replace(root / file, row, cell)
    with pytest.raises(HarnessError) as caught:
        _check(root)
    assert caught.value.code == code
    assert f"{file} row {row}, cam" in caught.value.what


def test_whole_images_of_other_kinds_are_fine(tmp_path: Path) -> None:
    root = writer.write(tmp_path)
    for row, cell in enumerate((_jpeg(), _jpeg() + b"after the end", writer.png(writer.frame(2)))):
        _replace(root / LAST["v2.1"][0], row, cell)
    assert _check(root) == []


def test_a_missing_image_file_is_found(tmp_path: Path) -> None:
    root = writer.write(tmp_path, images="files")
    (root / "images/cam/episode_000001/frame_000003.png").unlink()
    with pytest.raises(HarnessError) as caught:
        _check(root)
    assert caught.value.code == "image-missing"
    assert "episode_000001.parquet row 3" in caught.value.what


def test_images_of_another_size_are_a_finding(tmp_path: Path) -> None:
    root = writer.write(tmp_path)
    _replace(root / LAST["v2.1"][0], 1, writer.png(np.zeros((60, 60, 3), np.uint8)))
    (finding,) = _check(root)
    assert "1 of 16" in finding
    assert "60 × 60" in finding


def test_a_shape_with_channels_first_is_no_finding(tmp_path: Path) -> None:
    root = writer.write(tmp_path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["cam"]["shape"] = [3, *writer.SIZE]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert _check(root) == []


def _cut_at_the_front_index(path: Path) -> None:
    """The same video with its index in front, as some encoders write, and the end of its data gone: the index
    still promises all.
    """
    ready = path.with_suffix(".front.mp4")
    with (
        av.open(str(path)) as source,
        av.open(str(ready), "w", format="mp4", options={"movflags": "faststart"}) as target,
    ):
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    path.write_bytes(ready.read_bytes()[:-8])
    ready.unlink()


VIDEOS: dict[str, tuple[Callable[[Path], None], str]] = {
    "fewer frames": (lambda path: writer.encode(path, range(12, 15), "libx264"), "video-too-short"),
    "its last bytes are gone": (_cut_at_the_front_index, "video-too-short"),
    "its index is gone": (lambda path: path.write_bytes(path.read_bytes()[:-300]), "video-corrupt"),
    "nothing": (lambda path: path.write_bytes(b""), "video-corrupt"),
    "no such file": (lambda path: path.unlink(), "dataset-file-missing"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_damaged_video_is_found_without_decoding_it(tmp_path: Path, name: str) -> None:
    root = writer.write(tmp_path, images="video")
    assert _check(root) == []
    damage, code = VIDEOS[name]
    path = root / "videos/chunk-000/cam/episode_000002.mp4"
    damage(path)
    with pytest.raises(HarnessError) as caught:
        _check(root)
    assert caught.value.code == code
    assert "episode_000002" in caught.value.what


def test_a_video_of_many_episodes_that_ends_early_names_the_row(tmp_path: Path) -> None:
    """v3.0: the last episode's second row is frame 13."""
    root = writer.write(tmp_path, version="v3.0", images="video")
    writer.encode(root / "videos/cam/chunk-000/file-000.mp4", range(13), "libx264")
    with pytest.raises(HarnessError) as caught:
        _check(root)
    assert caught.value.code == "video-too-short"
    assert "file-001.parquet row 1 " in caught.value.what


def test_rows_at_another_pace_than_the_metadata_says_are_a_finding(tmp_path: Path) -> None:
    root = writer.write(tmp_path)
    assert describe(_recipe(root)).findings == []
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"fps": 30}))
    (finding,) = describe(_recipe(root)).findings
    assert "the table runs at 10 frames a second throughout" in finding
    assert "fps in meta/info.json is wrong, which says 30" in finding


@pytest.mark.parametrize("late", [1, 4])
def test_single_gaps_at_another_pace_are_counted(late: int) -> None:
    """Two episodes of five rows at 10 frames a second, in which `late` rows come late."""
    times = np.tile(np.arange(5) / 10, 2)
    for row in range(1, 1 + late):
        times[row:5] += 0.3
    episodes = [Episode(i, 5 * i, 5, "data.parquet", 5 * i, {}) for i in range(2)]
    nothing = np.zeros((10, 1), np.float32)
    pace = oddities._Pace(10)
    pace.look(Block(episodes, nothing, nothing, times, np.zeros(10, np.int64)))
    (finding,) = pace.findings()
    assert finding.startswith("data.parquet rows 0 and 1 are 0.4 s apart")
    assert f"{late} of 8 gaps between rows differ" in finding


def test_a_camera_that_is_used_already_is_not_proposed(tmp_path: Path) -> None:
    root = writer.write(tmp_path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["wrist"] = info["features"]["cam"]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(HarnessError) as caught:
        describe(_recipe(root, **{"cameras.left_wrist_0_rgb": "cam2"}))
    assert caught.value.fix == "--set data.cameras.left_wrist_0_rgb=wrist"
