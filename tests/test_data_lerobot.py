"""Tests the dataset reader.

It is compared with LeRobot's own answers (golden), on every form of storage.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from harness.data import columns, rows
from harness.data.lerobot import open_dataset
from harness.errors import HarnessError
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    V3_DATA,
    change_column,
    opened,
    put_at,
)

HERE = Path(__file__).parent
FORMS = [
    ("v2.0", "parquet"),
    ("v2.1", "parquet"),
    ("v3.0", "parquet"),
    ("v2.1", "files"),
    ("v2.1", "paths"),
    ("v3.0", "files"),
    ("v3.0", "paths"),
]


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_equals_what_lerobots_reader_returns(version: str) -> None:
    data = open_dataset(HERE / "fixtures" / f"lerobot_{version}_image")
    golden = np.load(HERE / "golden" / f"lerobot_{version}_image_h10.npz")
    assert (data.frames, len(data.episodes), data.fps) == (52, 3, 10)
    for i in range(data.frames):
        actions, is_pad = data.action_chunk(i, 10)
        np.testing.assert_array_equal(data.state(i), golden["state"][i])
        np.testing.assert_array_equal(actions, golden["actions"][i])
        np.testing.assert_array_equal(is_pad, golden["actions_is_pad"][i])
        assert data.task(i) == golden["task"][i]
    for n, i in enumerate(golden["picked"]):
        image = data.image(int(i), "image").astype(np.float32) / np.float32(255)
        wrist = data.image(int(i), "wrist_image").astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(image.transpose(2, 0, 1)[:, :4, :4], golden["image_corner"][n])
        np.testing.assert_allclose(
            [image.mean(), image.std(), wrist.mean()],
            [golden[k][n] for k in ("image_mean", "image_std", "wrist_mean")],
            rtol=1e-5,
        )


@pytest.mark.parametrize(("version", "images"), FORMS)
def test_every_form_gives_the_same_frames(tmp_path: Path, version: str, images: str) -> None:
    data = opened(writer.write(tmp_path, version=version, images=images))
    state, actions = writer.numbers(16)
    assert data.version == version
    for i in range(16):
        np.testing.assert_array_equal(data.state(i), state[i])
        np.testing.assert_array_equal(data.action_chunk(i, 1)[0][0], actions[i])
        np.testing.assert_array_equal(data.image(i, "cam"), writer.frame(i))
        assert data.task(i) == writer.TASKS[0 if i < 7 or i >= 12 else 1]


def test_a_chunk_repeats_the_last_action_of_its_episode(tmp_path: Path) -> None:
    data = opened(writer.write(tmp_path))
    actions, is_pad = data.action_chunk(5, 4)
    np.testing.assert_array_equal(actions, writer.numbers(16)[1][[5, 6, 6, 6]])
    assert is_pad.tolist() == [False, False, True, True]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_video_frames_are_exact_in_any_order(tmp_path: Path, version: str, codec: str) -> None:
    data = opened(writer.write(tmp_path, version=version, images="video", codec=codec))
    for i in [0, 15, 3, 11, 12, 6, 7, 1, 2, 14]:
        image = data.image(i, "cam").astype(int)
        # Neighbouring frames differ by 8 grey levels.
        assert abs(image[24:].mean() - writer.frame(i)[24:].mean()) < 2, i
        assert image[4, 4, 0] > 200 > image[4, 4, 2]
        assert image[4, 60, 2] > 200 > image[4, 60, 0]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx265", {"g": "10", "x265-params": "log-level=none:bframes=4:scenecut=0:pools=none"}),
        ("libx264", {"x264-params": "open-gop=1:keyint=6:bframes=3:scenecut=0"}),
        ("mpeg4", {"g": "6", "bf": "2"}),
    ],
)
def test_frames_that_are_shown_before_their_key_frame_are_found(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    import av

    data = opened(writer.write(tmp_path, lengths=(40,), images="video"))
    path = tmp_path / "videos/chunk-000/cam/episode_000000.mp4"
    writer.encode(path, range(40), codec, options)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 40
    for i in range(40):
        np.testing.assert_array_equal(data.image(i, "cam"), frames[i])


def test_video_written_by_lerobot_equals_decoding_it_from_the_start() -> None:
    import av

    data = open_dataset(HERE / "fixtures" / "lerobot_v30_video")
    with av.open(str(data.path / "videos/wrist_image/chunk-000/file-000.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == data.frames == 28
    for i in (27, 14, 0, 13, 20):
        np.testing.assert_array_equal(data.image(i, "wrist_image"), frames[i])


def test_survives_the_way_to_another_process(tmp_path: Path) -> None:
    data = opened(writer.write(tmp_path))
    data.image(3, "cam")
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again.image(3, "cam"), data.image(3, "cam"))
    np.testing.assert_array_equal(again.state(3), data.state(3))


def test_numbers_are_read_without_the_images(tmp_path: Path) -> None:
    """Statistics must not depend on images: with every image damaged, states and actions still come."""
    root = writer.write(tmp_path)
    for path in root.glob("data/*/*.parquet"):
        change_column(path, "cam", lambda cells: [{"bytes": b"not an image", "path": None} for _ in cells])
    assert sum(len(block.state) for block in opened(root).blocks()) == 16


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_a_large_file_is_read_in_parts_of_whole_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, batch_rows: int
) -> None:
    monkeypatch.setattr(rows, "BLOCK_ROWS", 4)
    monkeypatch.setattr(columns, "_BATCH_ROWS", batch_rows)
    data = opened(writer.write(tmp_path, version=version, lengths=(3, 1, 7, 2, 2, 5)))
    blocks = list(data.blocks())
    lengths = [[episode.length for episode in block.episodes] for block in blocks]
    assert lengths == ([[3, 1], [7], [2, 2], [5]] if version == "v3.0" else [[3], [1], [7], [2], [2], [5]])
    state, actions = writer.numbers(20)
    np.testing.assert_array_equal(np.concatenate([block.state for block in blocks]), state)
    np.testing.assert_array_equal(data.columns.actions, actions)
    assert data.columns.task_index.tolist() == [task for block in blocks for task in block.task_index]


@pytest.mark.parametrize(
    ("column", "row", "value", "code"),
    [
        ("action", 11, [0.0, float("nan")], "dataset-not-finite"),
        ("action", 9, None, "dataset-feature-invalid"),
        ("index", 8, 7, "dataset-index-invalid"),
        ("task_index", 5, 9, "dataset-index-invalid"),
        ("timestamp", 10, float("nan"), "dataset-index-invalid"),
    ],
)
def test_a_row_is_named_by_its_place_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, row: int, value: object, code: str
) -> None:
    """Whichever part of a large file it is in."""
    monkeypatch.setattr(rows, "BLOCK_ROWS", 4)
    root = writer.write(tmp_path, version="v3.0", lengths=(3, 1, 7, 2, 2, 5))
    change_column(root / V3_DATA, column, put_at(row, value))
    with pytest.raises(HarnessError) as caught:
        list(opened(root).blocks())
    assert caught.value.code == code
    assert f"row {row}" in caught.value.what
