"""Tests the dataset reader.

It is compared with LeRobot's own answers (golden), on every form of storage, and on every kind of broken
dataset.
"""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data import columns, rows
from harness.data.dataset import describe
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer

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


def recipe(root: Path, **changes: str) -> Recipe:
    keys = {
        "dataset": str(root),
        "state": "observation.state",
        "actions": "action",
        "cameras.base_0_rgb": "cam",
        "cameras.left_wrist_0_rgb": "null",
    } | changes
    return load_recipe("smoke", [f"data.{key}={value}" for key, value in keys.items()])


def opened(root: Path) -> LeRobotDataset:
    return open_dataset(root, state="observation.state", actions="action")


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
        _change(path, "cam", lambda cells: [{"bytes": b"not an image", "path": None} for _ in cells])
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
    _change(root / V3_DATA, column, _set(row, value))
    with pytest.raises(HarnessError) as caught:
        list(opened(root).blocks())
    assert caught.value.code == code
    assert f"row {row}" in caught.value.what


# --- broken datasets
# -----------------------------------------------------------------------------------------------------


def _change(path: Path, column: str, change: Callable[[list], list]) -> None:
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    values = pa.array(change(table.column(column).to_pylist()), type=table.schema.field(column).type)
    pq.write_table(table.set_column(at, table.schema.field(column), values), path)


def _info(root: Path, **changes: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _set(at: int, value: object) -> Callable[[list], list]:
    return lambda cells: [value if n == at else cell for n, cell in enumerate(cells)]


def _bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


FIRST = "data/chunk-000/episode_000000.parquet"
SECOND = "data/chunk-000/episode_000001.parquet"
BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no info": ("not-a-dataset", lambda root: (root / "meta/info.json").unlink()),
    "newer format": ("dataset-format-unsupported", lambda root: _info(root, codebase_version="v4.0")),
    "older format": ("dataset-version-wrong", lambda root: _info(root, codebase_version="v1.6")),
    "no version": ("dataset-version-wrong", lambda root: _info(root, codebase_version=None)),
    "info is not JSON": ("dataset-metadata-invalid", lambda root: (root / "meta/info.json").write_text("{")),
    "info is a list": ("dataset-metadata-invalid", lambda root: (root / "meta/info.json").write_text("[]")),
    "no features": ("dataset-metadata-invalid", lambda root: _info(root, features={})),
    "fps 0": ("dataset-metadata-invalid", lambda root: _info(root, fps=0)),
    "no tasks": ("dataset-file-missing", lambda root: (root / "meta/tasks.jsonl").unlink()),
    "no episodes file": ("dataset-file-missing", lambda root: (root / "meta/episodes.jsonl").unlink()),
    "zero episodes": ("dataset-empty", lambda root: (root / "meta/episodes.jsonl").write_text("")),
    "an episode of no frames": (
        "dataset-metadata-invalid",
        lambda root: (root / "meta/episodes.jsonl").write_text(
            '{"episode_index": 0, "length": 0, "tasks": []}'
        ),
    ),
    "an episode twice": (
        "dataset-metadata-invalid",
        lambda root: (root / "meta/episodes.jsonl").write_text(
            '{"episode_index": 0, "length": 7}\n{"episode_index": 0, "length": 7}'
        ),
    ),
    "totals differ": ("dataset-rows-mismatch", lambda root: _info(root, total_frames=17)),
    "path outside": (
        "dataset-path-unsafe",
        lambda root: _info(root, data_path="../episode_{episode_index:06d}.parquet"),
    ),
    "absolute path": ("dataset-path-unsafe", lambda root: _info(root, data_path="/etc/passwd")),
    "template with an attribute": (
        "dataset-metadata-invalid",
        lambda root: _info(root, data_path="data/{episode_index.__class__}"),
    ),
    "template of a huge width": (
        "dataset-metadata-invalid",
        lambda root: _info(root, data_path="data/{episode_index:0999999999d}"),
    ),
    "a link outside": (
        "dataset-path-unsafe",
        lambda root: ((root / FIRST).unlink(), (root / FIRST).symlink_to("/etc/passwd")),
    ),
    "missing parquet": ("dataset-file-missing", lambda root: (root / SECOND).unlink()),
    "truncated parquet": (
        "dataset-file-corrupt",
        lambda root: (root / SECOND).write_bytes((root / SECOND).read_bytes()[:-100]),
    ),
    "empty parquet": ("dataset-file-corrupt", lambda root: (root / SECOND).write_bytes(b"")),
    "wrong row count": (
        "dataset-rows-mismatch",
        lambda root: pq.write_table(pq.read_table(root / SECOND).slice(0, 4), root / SECOND),
    ),
    "files exchanged": (
        "dataset-rows-mismatch",
        lambda root: (root / SECOND).write_bytes((root / FIRST).read_bytes()),
    ),
    "a column is missing": (
        "dataset-feature-missing",
        lambda root: pq.write_table(pq.read_table(root / SECOND).drop_columns("action"), root / SECOND),
    ),
    "duplicate indices": ("dataset-index-invalid", lambda root: _change(root / SECOND, "index", _set(2, 8))),
    "frame_index wrong": (
        "dataset-index-invalid",
        lambda root: _change(root / SECOND, "frame_index", _set(2, 1)),
    ),
    "episode_index wrong": (
        "dataset-index-invalid",
        lambda root: _change(root / SECOND, "episode_index", _set(2, 0)),
    ),
    "unknown task": ("dataset-index-invalid", lambda root: _change(root / SECOND, "task_index", _set(2, 9))),
    "NaN timestamp": (
        "dataset-index-invalid",
        lambda root: _change(root / SECOND, "timestamp", _set(2, float("nan"))),
    ),
    "NaN action": (
        "dataset-not-finite",
        lambda root: _change(root / SECOND, "action", _set(3, [0.0, float("nan")])),
    ),
    "infinite state": (
        "dataset-not-finite",
        lambda root: _change(root / SECOND, "observation.state", _set(3, [0.0, float("inf"), 1.0])),
    ),
    "null action": ("dataset-feature-invalid", lambda root: _change(root / SECOND, "action", _set(3, None))),
    "corrupt PNG": (
        "image-corrupt",
        lambda root: _change(
            root / FIRST, "cam", _set(0, {"bytes": writer.png(writer.frame(0))[:90], "path": None})
        ),
    ),
    "not an image": (
        "image-corrupt",
        lambda root: _change(root / FIRST, "cam", _set(0, {"bytes": b"GIF89a", "path": None})),
    ),
    "decompression bomb": (
        "image-too-large",
        lambda root: _change(root / FIRST, "cam", _set(0, {"bytes": _bomb(), "path": None})),
    ),
    "no image": ("image-missing", lambda root: _change(root / FIRST, "cam", _set(0, None))),
    "image path outside": (
        "dataset-path-unsafe",
        lambda root: _change(root / FIRST, "cam", _set(0, {"bytes": None, "path": "../../etc/passwd"})),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dataset_is_refused(tmp_path: Path, name: str) -> None:
    code, damage = BROKEN[name]
    root = writer.write(tmp_path / "set")
    describe(recipe(root))
    damage(root)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == code
    assert caught.value.fix


V3_DATA, V3_EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
BROKEN_V3: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no episodes": ("dataset-file-missing", lambda root: (root / V3_EPISODES).unlink()),
    "truncated episodes": (
        "dataset-file-corrupt",
        lambda root: (root / V3_EPISODES).write_bytes((root / V3_EPISODES).read_bytes()[:-50]),
    ),
    "zero episodes": (
        "dataset-empty",
        lambda root: pq.write_table(pq.read_table(root / V3_EPISODES).slice(0, 0), root / V3_EPISODES),
    ),
    "missing data file": ("dataset-file-missing", lambda root: (root / V3_DATA).unlink()),
    "truncated data file": (
        "dataset-file-corrupt",
        lambda root: (root / V3_DATA).write_bytes((root / V3_DATA).read_bytes()[:-50]),
    ),
    "wrong row count": (
        "dataset-rows-mismatch",
        lambda root: pq.write_table(pq.read_table(root / V3_DATA).slice(0, 11), root / V3_DATA),
    ),
    "duplicate indices": ("dataset-index-invalid", lambda root: _change(root / V3_DATA, "index", _set(8, 7))),
    "NaN action": (
        "dataset-not-finite",
        lambda root: _change(root / V3_DATA, "action", _set(9, [0.0, float("nan")])),
    ),
    "corrupt PNG": (
        "image-corrupt",
        lambda root: _change(root / V3_DATA, "cam", _set(0, {"bytes": b"\x89PNG\r\n\x1a\n", "path": None})),
    ),
    "decompression bomb": (
        "image-too-large",
        lambda root: _change(root / V3_DATA, "cam", _set(0, {"bytes": _bomb(), "path": None})),
    ),
}


@pytest.mark.parametrize("name", BROKEN_V3)
def test_a_broken_dataset_of_version_3_is_refused(tmp_path: Path, name: str) -> None:
    code, damage = BROKEN_V3[name]
    root = writer.write(tmp_path / "set", version="v3.0")
    describe(recipe(root))
    damage(root)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(
    ("version", "place"), [("v2.1", "episode_000001.parquet row 2"), ("v3.0", "file-000.parquet row 9")]
)
@pytest.mark.parametrize(
    ("cell", "code"), [(writer.png(writer.frame(0))[:90], "image-corrupt"), (_bomb(), "image-too-large")]
)
def test_an_image_that_cannot_be_decoded_is_named_with_file_and_row(
    tmp_path: Path, version: str, place: str, cell: bytes, code: str
) -> None:
    """Frame 9 is row 2 of the second episode, wherever that is stored."""
    root = writer.write(tmp_path, version=version)
    _change(
        root / (SECOND if version == "v2.1" else V3_DATA),
        "cam",
        _set(int(place[-1]), {"bytes": cell, "path": None}),
    )
    assert opened(root).image(8, "cam").shape == (48, 64, 3)
    with pytest.raises(HarnessError) as caught:
        opened(root).image(9, "cam")
    assert caught.value.code == code
    assert f"{place}, cam" in caught.value.what


@pytest.mark.parametrize(("column", "row"), [("action", 3), ("index", 2)])
def test_the_refusal_names_file_and_row(tmp_path: Path, column: str, row: int) -> None:
    root = writer.write(tmp_path)
    _change(root / SECOND, column, _set(row, [float("nan"), 0.0] if column == "action" else 0))
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert f"episode_000001.parquet row {row}" in caught.value.what


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_shorter_than_its_table_is_refused(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path, version=version, images="video")
    path = max(root.rglob("*.mp4"))
    writer.encode(path, range(2), "libx264")
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == "video-too-short"
    with pytest.raises(HarnessError) as caught:
        opened(root).image(15, "cam")
    assert caught.value.code == "video-too-short"


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 3], lambda b: b[:0], lambda b: bytes(len(b))])
def test_a_damaged_video_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    root = writer.write(tmp_path, images="video")
    path = min(root.rglob("*.mp4"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == "video-corrupt"


def test_v3_episodes_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    root = writer.write(tmp_path, version="v3.0")
    _change(root / "meta/episodes/chunk-000/file-000.parquet", "dataset_from_index", _set(1, 6))
    with pytest.raises(HarnessError) as caught:
        opened(root)
    assert caught.value.code == "dataset-rows-mismatch"


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("cameras.base_0_rgb", "camera", "cam"), ("state", "observation.stat", "observation.state")],
)
def test_a_feature_that_is_not_there_gets_the_nearest_name(
    tmp_path: Path, key: str, value: str, nearest: str
) -> None:
    root = writer.write(tmp_path)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root, **{key: value}))
    assert caught.value.code == "dataset-feature-missing"
    assert caught.value.fix == f"--set data.{key}={nearest}"


def test_a_camera_cannot_be_the_state(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        describe(recipe(writer.write(tmp_path), state="cam"))
    assert caught.value.code == "dataset-feature-invalid"


def test_more_actions_than_the_model_has_room_for_are_refused_and_more_state_is_told(tmp_path: Path) -> None:
    """Two actions and a state of three: the state does not enter the model, so that it refuses no robot."""
    root = writer.write(tmp_path)

    def narrow(width: int) -> Recipe:
        return recipe(root).model_copy(
            update={"model": recipe(root).model.model_copy(update={"action_dim": width})}
        )

    with pytest.raises(HarnessError) as caught:
        describe(narrow(1))
    assert caught.value.code == "action-dim-too-small"
    assert describe(narrow(2)).findings == [
        "observation.state has 3 dimensions, more than model.action_dim (2); it does not enter this model, so"
        " nothing of it is lost"
    ]
    assert describe(narrow(3)).findings == []
