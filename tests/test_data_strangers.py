"""Tests datasets made to do harm: no file outside is opened, and no small file becomes large."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data import columns, fields, images, mp4, unpack
from harness.data.dataset import content_hash, describe
from harness.data.lerobot import open_dataset
from harness.data.listings import VideoSpan
from harness.data.metadata import read_metadata
from harness.data.video import open_video
from harness.errors import HarnessError
from tests.support import lerobot_writer as writer
from tests.test_data_lerobot import FIRST, V3_DATA, V3_EPISODES, _bomb, _info, recipe

SECOND = "data/chunk-000/episode_000001.parquet"
VIDEO = "videos/chunk-000/cam/episode_000001.mp4"


def _code(look: Callable[[], object]) -> str:
    with pytest.raises(HarnessError) as caught:
        look()
    return caught.value.code


# --- special files and links
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("parquet", "meta/tasks.jsonl"),
        ("parquet", "meta/episodes.jsonl"),
        ("parquet", SECOND),
        ("video", VIDEO),
        ("files", "images/cam/episode_000001/frame_000001.png"),
    ],
)
@pytest.mark.parametrize("special", ["fifo", "socket", "device"])
def test_no_special_file_is_opened(tmp_path: Path, kind: str, file: str, special: str) -> None:
    """A FIFO would wait for ever, /dev/zero would fill the memory."""
    path = writer.write(tmp_path / "set", images=kind) / file
    path.unlink()
    if special == "fifo":
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/zero")
    else:
        place = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(path.parent)
        place.bind(path.name)
        os.chdir(here)
    want = "dataset-path-unsafe" if special == "device" else "file-not-regular"
    assert _code(lambda: describe(recipe(tmp_path / "set"))) == want


def test_a_fifo_is_no_metadata(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    (root / "meta/info.json").unlink()
    os.mkfifo(root / "meta/info.json")
    assert _code(lambda: describe(recipe(root))) == "not-a-dataset"


@pytest.mark.parametrize("file", ["meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", FIRST, VIDEO])
def test_a_link_out_of_the_dataset_is_refused_by_name(tmp_path: Path, file: str) -> None:
    root = writer.write(tmp_path / "set", images="video")
    (root / file).rename(tmp_path / "secret")
    (root / file).symlink_to(tmp_path / "secret")
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code in ("dataset-path-unsafe", "file-leaves-root")
    assert Path(file).name in f"{caught.value.what} {caught.value.got}"


def test_what_is_no_content_changes_no_hash(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    before = content_hash(root)
    os.mkfifo(root / "data/fifo")
    (root / "data/loop").symlink_to(root)
    (root / "data/nowhere").symlink_to("nothing")
    (root / ".cache").symlink_to("/")
    assert content_hash(root) == before
    (root / "data/secret").symlink_to("/etc/passwd")
    assert _code(lambda: content_hash(root)) == "dataset-path-unsafe"


# --- metadata
# ------------------------------------------------------------------------------------------------------------

INFO = {
    "chunks_size of 0": {"chunks_size": 0},
    "fps of 1e400": {"fps": float("inf")},
    "fps of NaN": {"fps": float("nan")},
    "a huge fps": {"fps": 1e300},
    "a tiny fps": {"fps": 1e-300},
    "an integer of a million digits": {"fps": "DIGITS"},
    "10^12 episodes": {"total_episodes": 10**12},
    "-1 frames": {"total_frames": -1},
    "a negative shape": {"features": {"cam": {"dtype": "image", "shape": [-1, 2, 3]}}},
    "a huge shape": {"features": {"action": {"dtype": "float32", "shape": [10**15]}}},
    "many axes": {"features": {"action": {"dtype": "float32", "shape": [1] * 99}}},
    "many features": {"features": {f"f{n}": {"dtype": "float32", "shape": [1]} for n in range(20_000)}},
    "a long name": {"features": {"x" * 10_000: {"dtype": "float32", "shape": [1]}}},
    "a long template": {"data_path": "a" * 100_000},
    "a wide field": {"data_path": "data/{episode_index:099999d}"},
    "no fields": {"data_path": "data/x/" * 400},
}


@pytest.mark.parametrize("name", INFO)
def test_a_claim_in_the_metadata_is_refused(tmp_path: Path, name: str) -> None:
    root = writer.write(tmp_path / "set")
    _info(root, **INFO[name])
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace('"DIGITS"', "1" * 1_000_000))
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1e400", '{"fps": 1e99999}', "\xff", '"\\ud800"']
)
@pytest.mark.parametrize("file", ["info.json", "tasks.jsonl", "episodes.jsonl"])
def test_no_json_is_a_traceback(tmp_path: Path, file: str, text: str) -> None:
    root = writer.write(tmp_path / "set")
    (root / "meta" / file).write_bytes(text.encode("latin-1"))
    assert _code(lambda: read_metadata(root)).startswith("dataset-")


def test_a_line_without_an_end_and_lines_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writer.write(tmp_path / "set")
    path = root / "meta/episodes.jsonl"
    lines = path.read_text()
    path.write_text(lines + " " * (1 << 21))
    assert _code(lambda: read_metadata(root)) == "dataset-metadata-invalid"
    path.write_text(lines * 3)
    monkeypatch.setattr("harness.data.listings.MOST_EPISODES", 5)
    assert _code(lambda: read_metadata(root)) == "dataset-metadata-invalid"


def test_a_length_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"length": 2**46})
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    info = json.loads((root / "meta/info.json").read_text())
    del info["total_frames"]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert _code(lambda: open_dataset(root, state="observation.state", actions="action").columns) in (
        "dataset-too-large",
        "dataset-rows-mismatch",
    )


# --- parquet
# ------------------------------------------------------------------------------------------------------------


def _limited(code: str, limit_gib: float = 1.5) -> subprocess.CompletedProcess[str]:
    """A program that has so much address space, in a process of its own."""
    limit = int(limit_gib * 2**30)
    start = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=120, check=False
    )


def _read(root: Path) -> str:
    return f"""
from harness.data.dataset import describe
from harness.errors import HarnessError
from tests.test_data_lerobot import recipe
from pathlib import Path
try:
    describe(recipe(Path({str(root)!r})))
except HarnessError as error:
    print(error.code)
"""


def test_an_episodes_table_of_millions_of_rows_is_not_unpacked(tmp_path: Path) -> None:
    """23 kB became 626 MB, 440 kB took over two minutes."""
    root = writer.write(tmp_path / "set", version="v3.0")
    table = pq.read_table(root / V3_EPISODES)
    rows = 8_000_000
    same = {
        name: pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(rows, np.int8)), table.column(name).slice(0, 1).combine_chunks()
        )
        for name in table.column_names
    }
    same = {name: value.dictionary_decode() for name, value in same.items() if not name.startswith("stats/")}
    pq.write_table(pa.table(same), root / V3_EPISODES, compression="zstd", row_group_size=rows)
    assert (root / V3_EPISODES).stat().st_size < 500_000
    done = _limited(_read(root))
    assert done.stdout.strip() == "dataset-file-bomb", done.stderr[-2000:]


@pytest.mark.parametrize("column", ["task", "cam"])
def test_one_large_value_a_million_times_is_not_unpacked(tmp_path: Path, column: str) -> None:
    """A dictionary holds it once: a file of some kB would be terabytes of texts or pictures."""
    root = writer.write(tmp_path / "set", version="v3.0", lengths=(7, 5, 4))
    value, rows = "x" * 1_000_000, 200_000
    indices = pa.array(np.zeros(rows, np.int32))
    if column == "task":
        table = pa.table(
            {
                "task_index": pa.array(range(rows)),
                "task": pa.DictionaryArray.from_arrays(indices, pa.array([value])),
            }
        )
        pq.write_table(table, root / "meta/tasks.parquet", compression="zstd")
    else:
        pictures = pa.DictionaryArray.from_arrays(indices, pa.array([value.encode()]))
        pq.write_table(pa.table({"cam": pictures}), tmp_path / "big.parquet", compression="zstd")
        (root / V3_DATA).write_bytes((tmp_path / "big.parquet").read_bytes())
    look = _read(root)
    if column == "cam":
        look = f"""
from harness.data.encoded import EncodedColumn
from harness.errors import HarnessError
from pathlib import Path
root = Path({str(root)!r})
try:
    EncodedColumn().get(root, root / {V3_DATA!r}, "cam", 3)
except HarnessError as error:
    print(error.code)
"""
    done = _limited(look)
    assert done.stdout.strip() in ("dataset-file-bomb", "dataset-metadata-invalid"), done.stderr[-2000:]


def test_a_dictionary_of_few_large_values_is_read_as_ever(tmp_path: Path) -> None:
    """A camera that stands still: one picture for all frames, some 300 MB if each had its own."""
    picture = np.random.default_rng(0).bytes(1_500_000)
    cells = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(150, np.int32)), pa.array([picture])
    ).dictionary_decode()
    pq.write_table(pa.table({"cam": cells}), tmp_path / "x.parquet")
    with columns.open_parquet(tmp_path, tmp_path / "x.parquet") as (file, raw):
        rows, _ = unpack.rows_at_once(raw, file.metadata, 0, "cam")
        found = columns.read_group(file, raw, 0, "cam")
    assert (rows is None, len(found), found[149].as_py()) == (True, 150, picture)


def test_numbers_that_a_small_file_claims_are_not_unpacked(tmp_path: Path) -> None:
    rows = 20_000_000
    pq.write_table(
        pa.table({"x": pa.array(np.zeros(rows, np.int64))}), tmp_path / "x.parquet", row_group_size=rows
    )
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    assert (
        _code(lambda: next(columns.read_columns(tmp_path, tmp_path / "x.parquet", ["x"], [rows])))
        == "dataset-file-bomb"
    )


@pytest.mark.parametrize(
    "values",
    [
        pa.array([["a"], ["b"]]),
        pa.array([[[1.0]], [[2.0]]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"x", b"y"]),
        pa.array([["x" * 10], ["y"]], pa.list_(pa.string())),
    ],
)
def test_a_column_that_holds_no_numbers_is_refused_before_it_is_read(
    tmp_path: Path, values: pa.Array
) -> None:
    pq.write_table(pa.table({"x": values}), tmp_path / "x.parquet")
    assert _code(lambda: next(columns.read_columns(tmp_path, tmp_path / "x.parquet", ["x"], [2]))) in (
        "dataset-feature-invalid",
    )


def test_the_pages_are_those_that_the_footer_speaks_of(tmp_path: Path) -> None:
    """Against pyarrow's own sums, for every form in which it writes pages."""
    table = pa.table(
        {
            "a": pa.array(np.arange(50_000)),
            "v": pa.array([[float(i), 1.0] for i in range(50_000)]),
            "s": [str(i % 7) * 9 for i in range(50_000)],
        }
    )
    for version in ("1.0", "2.0"):
        for compression in ("snappy", "zstd", "none"):
            pq.write_table(
                table,
                tmp_path / "x.parquet",
                data_page_version=version,
                compression=compression,
                data_page_size=4096,
                row_group_size=20_000,
            )
            with columns.open_parquet(tmp_path, tmp_path / "x.parquet") as (file, raw):
                for group in range(file.metadata.num_row_groups):
                    for leaf in unpack.leaves(file.metadata, ["a", "v", "s"]):
                        chunk = file.metadata.row_group(group).column(leaf)
                        found = list(unpack.pages(raw, chunk))
                        assert sum(page.values for page in found) == chunk.num_values
                        assert sum(page.packed_bytes for page in found) < chunk.total_compressed_size


def test_a_page_that_claims_more_than_its_bytes_can_hold_is_refused(tmp_path: Path) -> None:
    """The footer does not know of it: the claim stands in the page's own header."""
    pq.write_table(
        pa.table({"x": pa.array(np.zeros(100_000_000, np.uint8)).cast(pa.uint8())}),
        tmp_path / "x.parquet",
        use_dictionary=False,
        compression="zstd",
        data_page_size=1 << 28,
        row_group_size=1 << 28,
    )
    assert (
        _code(lambda: next(columns.read_columns(tmp_path, tmp_path / "x.parquet", ["x"], [100_000_000])))
        == "dataset-file-bomb"
    )


@pytest.mark.parametrize(
    "header",
    [
        b"\x15" * 40,
        b"\x00",
        b"\x1c" * 5000,
        b"\x19\xff\xff\xff\xff\x0f",
        b"\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_any_bytes_are_no_header_of_a_page(tmp_path: Path, header: bytes) -> None:
    class Chunk:
        dictionary_page_offset, data_page_offset, total_compressed_size, num_values = None, 4, len(header), 9

    (tmp_path / "x").write_bytes(b"PAR1" + header)
    with (tmp_path / "x").open("rb") as file, pytest.raises(unpack.TooMuch):
        list(unpack.pages(file, Chunk))


# --- pictures
# ------------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(
    *between: bytes, header: bytes = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0), data: bytes | None = None
) -> bytes:
    pixels = zlib.compress(bytes(4 * 13)) if data is None else data
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + b"".join(between)
        + _chunk(b"IDAT", pixels)
        + _chunk(b"IEND", b"")
    )


FULL = zlib.compress(bytes(300_000_000), 9)
PNGS = {
    "a text that unpacks to 300 MB": _png(_chunk(b"zTXt", b"k\0\0" + FULL)),
    "a colour profile that unpacks to 300 MB": _png(_chunk(b"iCCP", b"k\0\0" + FULL)),
    "an international text that unpacks to 300 MB": _png(_chunk(b"iTXt", b"k\0\1\0\0\0" + FULL)),
    "pixels that unpack to 300 MB": _png(data=FULL),
    "interlaced and huge": _png(header=struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 1), data=FULL),
    "16 bits and huge": _png(header=struct.pack(">IIBBBBB", 60_000, 60_000, 16, 6, 0, 0, 0), data=FULL),
    "many frames, each huge": _png(
        _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 0, 0, 1, 1, 0, 0)),
    ),
    "as claimed": _bomb(),
}


def test_a_picture_takes_no_more_memory_than_its_pixels(tmp_path: Path) -> None:
    for number, data in enumerate(PNGS.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
    done = _limited(
        f"""
from pathlib import Path
from harness.data.images import check_image, decode
from harness.errors import HarnessError
for path in sorted(Path({str(tmp_path)!r}).glob("*.png")):
    for look in (decode, check_image):
        try:
            look(path.read_bytes(), "x")
        except HarnessError:
            pass
print("done")
""",
        limit_gib=0.6,
    )
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "EPS"])
def test_only_the_named_formats_are_opened(kind: str) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    assert _code(lambda: images.decode(buffer.getvalue(), "x")) == "image-corrupt"


# --- videos
# ------------------------------------------------------------------------------------------------------------


def _patched(path: Path, box: bytes, at: int, value: int) -> None:
    data = bytearray(path.read_bytes())
    place = data.rindex(box) + 4 + at
    data[place : place + 4] = struct.pack(">I", value)
    path.write_bytes(bytes(data))


CLAIMS = {
    "a size for four billion frames": lambda path: (
        _patched(path, b"stsz", 4, 7),
        _patched(path, b"stsz", 8, 2**32 - 1),
    ),
    "a duration for four billion frames": lambda path: _patched(path, b"stts", 8, 2**32 - 1),
    "an edit list of a million parts": lambda path: _patched(path, b"elst", 4, 1_000_000),
    "a box of moving fragments": lambda path: path.write_bytes(
        path.read_bytes()
        + struct.pack(">I4s", 28, b"moof")
        + struct.pack(">I4sIII", 20, b"trun", 0, 2**31, 0)
    ),
    "a compressed header": lambda path: path.write_bytes(
        path.read_bytes() + struct.pack(">I4sI4s", 16, b"moov", 8, b"cmov")
    ),
    "a thousand tracks": lambda path: path.write_bytes(
        path.read_bytes() + struct.pack(">I4s", 8008, b"moov") + struct.pack(">I4s", 8, b"trak") * 1000
    ),
    "boxes without end": lambda path: path.write_bytes(
        path.read_bytes() + struct.pack(">I4s", 8, b"free") * 200_000
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_video_that_claims_too_much_is_refused_before_it_is_indexed(tmp_path: Path, name: str) -> None:
    root = writer.write(tmp_path / "set", images="video")
    CLAIMS[name](root / VIDEO)
    with (
        (root / VIDEO).open("rb") as file,
        pytest.raises(ValueError, match=r"it claims|it has more|compressed"),
    ):
        mp4.check_claims(file)
    assert _code(lambda: describe(recipe(root))) == "video-corrupt"


def test_a_whole_video_claims_what_it_has(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", images="video")
    for path in [*root.rglob("*.mp4"), *(Path(__file__).parent / "fixtures").rglob("*.mp4")]:
        with path.open("rb") as file:
            mp4.check_claims(file)


def test_a_video_reads_no_other_file(tmp_path: Path) -> None:
    """A data reference of the mp4 names another file, as QuickTime's reference movies do: its pictures are
    not taken from there.
    """
    root = writer.write(tmp_path / "set", images="video")
    data = (root / VIDEO).read_bytes()
    whole = open_video(root, root / VIDEO)[0]
    assert sum(1 for packet in whole.demux(video=0) if packet.size) == 5
    other = tmp_path / "other.mp4"
    at = data.rindex(b"dref") - 4
    # An alias record of QuickTime with the absolute path, in place of "in this file".
    name = str(other).encode()
    alias = (
        bytes(4)
        + bytes(6)
        + bytes(130)
        + bytes(10)
        + struct.pack(">HH", 2, len(name))
        + name
        + b"\0" * (len(name) % 2)
        + struct.pack(">h", -1)
    )
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    box = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    old = int.from_bytes(data[at : at + 4], "big")
    changed = bytearray(data[:at] + box + data[at + old :])
    for parent in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = bytes(changed).rindex(parent) - 4
        changed[place : place + 4] = struct.pack(
            ">I", int.from_bytes(changed[place : place + 4], "big") + len(box) - old
        )
    (root / VIDEO).write_bytes(bytes(changed))
    other.write_bytes(data)
    with av.open(str(root / VIDEO), options={"enable_drefs": "1", "use_absolute_path": "1"}) as trusting:
        assert sum(1 for packet in trusting.demux(video=0) if packet.size) == 5
    assert _code(lambda: describe(recipe(root))) == "video-corrupt"


def test_a_video_of_pictures_larger_than_it_says_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writer.write(tmp_path / "set", images="video")
    monkeypatch.setattr("harness.data.video._PIXELS", {"max_pixels": "1000"})
    assert _code(lambda: open_dataset(root, state="observation.state", actions="action").image(0, "cam")) in (
        "video-corrupt",
        "image-too-large",
    )


def test_a_row_of_a_video_may_be_looked_for_at_any_time(tmp_path: Path) -> None:
    """Times that no integer of FFmpeg holds are an answer as well."""
    root = writer.write(tmp_path / "set", version="v3.0", images="video")
    for start in (1e15, 9e14, 1e9):
        data = open_dataset(root, state="observation.state", actions="action")
        data.episodes[0].videos["cam"] = VideoSpan(data.episodes[0].videos["cam"].file, start)
        assert _code(lambda data=data: data.image(0, "cam")) in ("video-too-short", "video-corrupt")


def test_a_number_is_shown_without_its_million_digits() -> None:
    with pytest.raises(HarnessError) as caught:
        fields.integer({"a": 10**100_000}, "a", "x")
    assert len(str(caught.value)) < 300
