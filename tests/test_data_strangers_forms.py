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
from tests.support.dataset_breaks import (
    V3_EPISODES,
    change_column,
    each_table,
    opened,
    recipe,
    refused,
)

VERSIONS = ("v2.1", "v3.0")
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


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
    each_table(root, "cam", lambda table: pa.array([cell(i) for i in range(len(table))]))
    refusal = refused(root)
    assert (refusal.code, refusal.got) == ("dataset-feature-invalid", got)
    assert "PNG" in refusal.fix


@pytest.mark.parametrize("path", ["/home/x/pics/0.png", "../pics/0.png", "C:\\pics\\0.png"])
def test_the_fix_for_a_path_outside_says_where_pictures_belong(tmp_path: Path, path: str) -> None:
    root = writer.write(tmp_path / "set")
    each_table(root, "cam", lambda table: pa.array([{"bytes": None, "path": path}] * len(table), type=CELL))
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

    each_table(root, "cam", cells)
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
    each_table(
        root, "timestamp", lambda table: pa.array(clock(np.array(table.column("timestamp"), np.float64)))
    )
    refusal = refused(root)
    assert refusal.code == "timestamps-wrong"
    assert "frame_index / 10 into the column timestamp" in refusal.fix
    each_table(root, "timestamp", lambda table: pa.array(np.array(table.column("frame_index")) / 10))
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


def test_a_column_that_stands_there_twice_is_told_as_that(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    path = next((root / "data").rglob("*000.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.append_column("action", table.column("action")), path)
    refusal = refused(root)
    assert (refusal.code, "more than once" in refusal.what) == ("dataset-feature-invalid", True)


def test_what_macos_leaves_beside_a_list_of_episodes_is_no_list(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", version="v3.0")
    (root / V3_EPISODES).with_name("._file-000.parquet").write_bytes(b"\0\5\x16\7")
    assert describe(recipe(root)).frames == 16


def test_a_number_that_float32_does_not_hold_is_told(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", version="v2.0")
    path = next((root / "data").rglob("*000.parquet"))
    change_column(path, "action", lambda cells: [[1e300, 0.0], *cells[1:]])
    assert "float32" in str(refused(root).need)
