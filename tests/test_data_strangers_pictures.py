"""Tests pictures and videos made to do harm: no other file is opened, and no small file becomes large."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import av
import pytest

from harness.data import images, mp4
from harness.data.dataset import describe
from harness.data.lerobot import open_dataset
from harness.data.listings import VideoSpan
from harness.data.video import open_video
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    VIDEO,
    bomb,
    recipe,
)
from tests.support.strangers import code_of, limited


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
    "as claimed": bomb(),
}


def test_a_picture_takes_no_more_memory_than_its_pixels(tmp_path: Path) -> None:
    for number, data in enumerate(PNGS.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
    done = limited(
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
    assert code_of(lambda: images.decode(buffer.getvalue(), "x")) == "image-corrupt"


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
    assert code_of(lambda: describe(recipe(root))) == "video-corrupt"


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
    assert code_of(lambda: describe(recipe(root))) == "video-corrupt"


def test_a_video_of_pictures_larger_than_it_says_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writer.write(tmp_path / "set", images="video")
    monkeypatch.setattr("harness.data.video._PIXELS", {"max_pixels": "1000"})
    assert code_of(
        lambda: open_dataset(root, state="observation.state", actions="action").image(0, "cam")
    ) in (
        "video-corrupt",
        "image-too-large",
    )


def test_a_row_of_a_video_may_be_looked_for_at_any_time(tmp_path: Path) -> None:
    """Times that no integer of FFmpeg holds are an answer as well."""
    root = writer.write(tmp_path / "set", version="v3.0", images="video")
    for start in (1e15, 9e14, 1e9):
        data = open_dataset(root, state="observation.state", actions="action")
        data.episodes[0].videos["cam"] = VideoSpan(data.episodes[0].videos["cam"].file, start)
        assert code_of(lambda data=data: data.image(0, "cam")) in ("video-too-short", "video-corrupt")
