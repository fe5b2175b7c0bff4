"""Tests datasets of strangers in forms that LeRobot's own writer does not make.

What LeRobot's reader reads is read; what is not read is told as what it is, with a fix that leads somewhere.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.dataset import describe
from harness.data.images import check_image, decode
from harness.data.video import packet_times
from harness.errors import HarnessError
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import V3_EPISODES, change_column, change_info, opened, recipe, refused

VERSIONS = ("v2.1", "v3.0")
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _each_table(root: Path, column: str, make: Callable[[pa.Table], pa.Array]) -> None:
    """Puts another column in place of `column`, of another type where it has one, in every table."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, column, make(table)), path)


def _feature(root: Path, name: str, **changes: object) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][name] |= changes
    path.write_text(json.dumps(info))


def _encoded(kind: str, turn: int | None = None) -> bytes:
    from PIL import Image

    buffer, exif = io.BytesIO(), Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    Image.fromarray(writer.frame(3)).save(buffer, kind, **({} if turn is None else {"exif": exif}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "name"), [("TIFF", "TIFF"), ("GIF", "GIF"), ("JPEG2000", "JPEG 2000"), ("PPM", "PPM")]
)
def test_a_picture_of_another_format_is_named(kind: str, name: str) -> None:
    for look in (decode, check_image):
        with pytest.raises(HarnessError) as caught:
            look(_encoded(kind), "x")
        assert (caught.value.code, caught.value.got) == ("image-corrupt", name)
        assert "as PNG" in caught.value.fix


def test_bytes_of_no_format_are_shown_without_an_address_in_memory() -> None:
    with pytest.raises(HarnessError) as caught:
        decode(writer.frame(3).tobytes(), "x")
    assert caught.value.got == "9,216 bytes that begin with fa 0a 0a fa 0a 0a fa 0a"
    assert "raw pixels" in caught.value.fix


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_stands_as_its_exif_says(kind: str, turn: int) -> None:
    """As in LeRobot, whose pictures are decoded by `datasets`."""
    from PIL import Image, ImageOps

    data = _encoded(kind, turn)
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode(data, "x"), want)
    assert want.shape[:2] == ((64, 48) if turn > 4 else (48, 64))
    assert check_image(data, "x") == want.shape[:2]


def test_broken_exif_breaks_no_picture() -> None:
    data = _encoded("JPEG", 6)
    at = data.index(b"Exif\0\0") + 6
    broken = data[:at] + b"XX" + data[at + 2 :]
    assert decode(broken, "x").shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("cell", "got"),
    [
        (lambda i: writer.frame(i).tolist(), "a list of 48 values"),
        (lambda i: writer.frame(i).reshape(-1).tolist(), "a list of 9,216 values"),
        (lambda i: "iVBORw0K" * (400 + i), "a text of 3,200 letters"),
        (lambda i: i, "int"),
    ],
)
def test_a_cell_that_holds_no_picture_is_told(
    tmp_path: Path, cell: Callable[[int], object], got: str
) -> None:
    root = writer.write(tmp_path / "set")
    _each_table(root, "cam", lambda table: pa.array([cell(i) for i in range(len(table))]))
    refusal = refused(root)
    assert (refusal.code, refusal.got) == ("dataset-feature-invalid", got)
    assert "PNG" in refusal.fix


@pytest.mark.parametrize("path", ["/home/x/pics/0.png", "../pics/0.png", "C:\\pics\\0.png"])
def test_the_fix_for_a_path_outside_says_where_pictures_belong(tmp_path: Path, path: str) -> None:
    root = writer.write(tmp_path / "set")
    _each_table(root, "cam", lambda table: pa.array([{"bytes": None, "path": path}] * len(table), type=CELL))
    refusal = refused(root)
    assert refusal.code == "dataset-path-unsafe"
    assert "images/cam/episode_000000/frame_000000.png" in refusal.fix


@pytest.mark.parametrize("start", ["/home/x/set/", "C:\\sets\\a\\", "/data/images/of/"])
def test_a_picture_that_another_machine_named_is_found_by_its_part_in_the_dataset(
    tmp_path: Path, start: str
) -> None:
    root = writer.write(tmp_path / "set")
    name = "images/cam/{}.jpg"

    def cells(table: pa.Table) -> pa.Array:
        numbers = table.column("index").to_pylist()
        for i in numbers:
            path = root / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_encoded("JPEG"))
        return pa.array([{"bytes": None, "path": start + name.format(i)} for i in numbers], type=CELL)

    _each_table(root, "cam", cells)
    assert opened(root).image(9, "cam").shape == (48, 64, 3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "clock",
    [
        lambda t: t + 5,
        lambda t: t + 1.7e9,
        lambda t: t * 1000,
        lambda t: t - 0.1,
        lambda t: t + np.where(np.arange(len(t)) % 2, 0.04, -0.04),
    ],
)
def test_a_table_with_a_clock_of_its_own_is_told_not_its_video(
    tmp_path: Path, version: str, clock: Callable[[np.ndarray], np.ndarray]
) -> None:
    root = writer.write(tmp_path / "set", version=version, images="video")
    _each_table(
        root, "timestamp", lambda table: pa.array(clock(np.array(table.column("timestamp"), np.float64)))
    )
    refusal = refused(root)
    assert refusal.code == "timestamps-wrong"
    assert "frame_index / 10 into the column timestamp" in refusal.fix
    _each_table(root, "timestamp", lambda table: pa.array(np.array(table.column("frame_index")) / 10))
    assert describe(recipe(root)).findings == []


def _video(
    path: Path, frames: range, start_s: float = 0.0, container: str = "mp4", uneven_s: float = 0.0
) -> None:
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("mpeg4", rate=writer.FPS)
        stream.height, stream.width, stream.pix_fmt = *writer.SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for n, i in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(writer.frame(i), format="rgb24")
            frame.pts, frame.time_base = (
                round(1000 * (start_s + n / writer.FPS + n % 2 * uneven_s)),
                Fraction(1, 1000),
            )
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.mark.parametrize("start_s", [0.05, 1.0])
def test_a_video_that_begins_late_is_told_with_the_command_that_mends_it(
    tmp_path: Path, start_s: float
) -> None:
    root = writer.write(tmp_path / "a set", images="video")
    for n, path in enumerate(sorted(root.rglob("*.mp4"))):
        _video(path, range((7, 5, 4)[n]), start_s)
    refusal = refused(root)
    assert refusal.code == "video-offset-wrong"
    assert refusal.got == f"its first frame at {start_s:.3f} s"
    assert "ffmpeg -i '" in refusal.fix


def test_a_video_of_uneven_times_is_told_as_one(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", images="video")
    _video(next(root.rglob("*000.mp4")), range(7), uneven_s=0.05)
    refusal = refused(root)
    assert (refusal.code, refusal.got) == ("video-other-rate", "gaps of 0.050 to 0.150 s")
    assert "setpts=N/10/TB" in refusal.fix


def test_a_video_that_players_turn_is_a_finding(tmp_path: Path) -> None:
    """LeRobot's decoders do not agree on it."""
    root = writer.write(tmp_path / "set", images="video")
    path = next(root.rglob("*000.mp4"))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    (finding,) = describe(recipe(root)).findings
    assert "players turn the pictures of videos/chunk-000/cam/episode_000000.mp4 by -90°" in finding
    assert opened(root).image(0, "cam").shape == (48, 64, 3)


def test_frames_that_an_edit_list_hides_are_not_there(tmp_path: Path) -> None:
    """They were counted as there, and missed only in training."""
    root = writer.write(tmp_path / "set", images="video", lengths=(40, 5))
    path = next(root.rglob("*000.mp4"))
    assert len(packet_times(root, path)) == 40
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    shown = int.from_bytes(data[at : at + 4], "big") * 30 // 40
    path.write_bytes(data[:at] + shown.to_bytes(4, "big") + data[at + 4 :])
    assert len(packet_times(root, path)) == 30
    assert "the video ends 10 frames before the table" in str(refused(root).got)


def test_two_episodes_of_the_same_frames_are_a_finding(tmp_path: Path) -> None:
    """A wrong start time in the middle of a file lacks no frame, and shows another episode's."""
    root = writer.write(tmp_path / "set", version="v3.0", images="video")
    assert describe(recipe(root)).findings == []
    rows = pq.read_table(root / V3_EPISODES).to_pylist()
    rows[1]["videos/cam/from_timestamp"] -= 0.2
    pq.write_table(pa.Table.from_pylist(rows), root / V3_EPISODES)
    (finding,) = describe(recipe(root)).findings
    assert "episodes 0 and 1 in videos/cam/chunk-000/file-000.mp4 show the same frames" in finding


@pytest.mark.parametrize(("container", "name"), [("matroska", "Matroska or WebM"), ("avi", "AVI")])
def test_another_container_is_named(tmp_path: Path, container: str, name: str) -> None:
    root = writer.write(tmp_path / "set", images="video")
    _video(next(root.rglob("*000.mp4")), range(7), container=container)
    refusal = refused(root)
    assert (refusal.code, refusal.got, "-c copy" in refusal.fix) == ("video-corrupt", name, True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_task_with_two_texts_is_refused(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path / "set", version=version)
    for texts, tells in ((["open", "open"], False), (["open", "close"], True)):
        rows = [{"task_index": 0, "task": text} for text in texts] + [{"task_index": 1, "task": "x"}]
        (root / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if version == "v3.0":
            (root / "meta/tasks.jsonl").unlink()
            pq.write_table(pa.Table.from_pylist(rows), root / "meta/tasks.parquet")
        if tells:
            refusal = refused(root)
            assert (refusal.code, refusal.got) == ("dataset-metadata-invalid", "'open' and 'close'")
        else:
            assert describe(recipe(root)).tasks == ["open", "x"]


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
    _feature(root, "action", dtype="double")
    assert describe(recipe(root)).features["action"].dtype == "float64"


@pytest.mark.parametrize("changes", [{"dtype": "half"}, {"shape": [2, 1, 3]}, {"shape": []}])
def test_the_only_actions_are_not_to_be_mapped_to_others(tmp_path: Path, changes: dict) -> None:
    root = writer.write(tmp_path / "set")
    _feature(root, "action", **changes)
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


def test_a_column_that_stands_there_twice_is_told_as_that(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    path = next((root / "data").rglob("*000.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.append_column("action", table.column("action")), path)
    refusal = refused(root)
    assert (refusal.code, "more than once" in refusal.what) == ("dataset-feature-invalid", True)


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

    _each_table(root, "action", laid)
    _feature(root, "action", shape=shape)
    assert np.array_equal(opened(root).columns.actions, before)
    assert describe(recipe(root)).features["action"].shape == [2]


def test_a_null_in_a_vector_of_a_vector_is_told_with_its_row(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    rows = [[[1.0, float(n)]] if n != 3 else [[1.0, None]] for n in range(7)]
    _each_table(root, "action", lambda table: pa.array(rows[: table.num_rows]))
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
    _each_table(root, "index", lambda table: table.column("frame_index").combine_chunks())
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
        path.with_suffix(".jpg").write_bytes(_encoded("JPEG"))
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


def test_what_macos_leaves_beside_a_list_of_episodes_is_no_list(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", version="v3.0")
    (root / V3_EPISODES).with_name("._file-000.parquet").write_bytes(b"\0\5\x16\7")
    assert describe(recipe(root)).frames == 16


def test_a_number_that_float32_does_not_hold_is_told(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", version="v2.0")
    path = next((root / "data").rglob("*000.parquet"))
    change_column(path, "action", lambda cells: [[1e300, 0.0], *cells[1:]])
    assert "float32" in str(refused(root).need)
