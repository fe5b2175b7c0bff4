"""Tests logs from strangers: compressed, endless, torn, and special files.

Time and memory stay bounded, and parts that were left out are reported.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import resource
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.analyse import text as text_module
from harness.analyse.curve import analyse
from harness.analyse.lines import read_records
from harness.analyse.source import open_source
from harness.analyse.text import LONGEST_LINE
from harness.errors import HarnessError
from harness.received.files import UnsafeFile
from tests.support.console_log import falling, log, steps

TEXT = log(steps(), falling())


def test_a_packed_log_from_a_pipe_is_not_named_by_a_file_that_does_not_exist(tmp_path: Path) -> None:
    zstd = b"\x28\xb5\x2f\xfd" + bytes(20)
    with pytest.raises(HarnessError) as caught:
        analyse("-", stdin=zstd)
    assert caught.value.fix == "zstd -dc FILE.zst | harness analyse -"
    file = tmp_path / "a log.zst"
    file.write_bytes(zstd)
    with pytest.raises(HarnessError) as caught:
        analyse(str(file))
    assert caught.value.fix == f"zstd -dc '{file}' | harness analyse -"


def zipped(*names: str, text: bytes = TEXT.encode()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, text)
    return file.getvalue()


def bomb(line: bytes, megabytes: int) -> Iterator[bytes]:
    """A gzip file of `line`, again and again."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    block = line * (2**20 // len(line))
    for _ in range(megabytes):
        yield packer.compress(block)
    yield packer.flush()


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, bz2.compress, lzma.compress, lambda data: zipped("train.log", text=data)],
    ids=["gzip", "bzip2", "xz", "zip"],
)
def test_packed_logs_are_read_from_a_file_and_from_a_pipe(pack, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = pack(TEXT.encode())
    (tmp_path / "log").write_bytes(data)
    for curve in (analyse("-", stdin=data), analyse(str(tmp_path / "log"))):
        assert (curve.points, curve.verdict, curve.partial) == (300, "learning", [])
    with subprocess.Popen(["cat", str(tmp_path / "log")], stdout=subprocess.PIPE) as pipe:
        assert pipe.stdout is not None
        assert analyse("-", stdin=pipe.stdout).points == 300


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_a_damaged_packed_log_is_partial_or_refused(pack) -> None:  # type: ignore[no-untyped-def]
    data = pack(log(range(40_000), falling(40_000)).encode())
    curve = analyse("-", stdin=data[: len(data) * 4 // 5])
    assert 100 < curve.points < 40_000
    assert any("damaged" in told for told in curve.partial)


def test_a_zip_whose_directory_lies_about_its_place_is_refused() -> None:
    data = bytearray(zipped("a.log"))
    at = data.rindex(b"PK\x05\x06")
    data[at + 12 : at + 20] = b"\xff\xff\x00\x00\xff\xff\xff\x7f"
    with pytest.raises(HarnessError) as error:
        open_source("-", bytes(data))
    assert error.value.code == "log-empty"


def test_an_archive_of_several_files_is_refused_with_their_names() -> None:
    with pytest.raises(HarnessError) as error:
        open_source("-", zipped("a.log", "b.log"))
    assert error.value.code == "log-archive"
    assert "a.log" in str(error.value)


def test_what_is_unpacked_is_bounded_and_the_cut_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MOST_BYTES", 100_000)
    curve = analyse("-", stdin=gzip.compress(log(range(20_000), falling(20_000)).encode()))
    assert 1000 < curve.points < 3000
    assert any("was not read" in told for told in curve.partial)


@pytest.mark.parametrize(
    "line",
    [b"Step 1: loss=0.5, grad_norm=1.0\n", b"a" * 1000, b"\n", b"\x1b[31m x\n"],
    ids=["records", "one line", "blank", "colours"],
)
def test_a_small_file_that_unpacks_to_gigabytes_takes_little_memory(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(b"".join(bomb(line, 1024)))
    assert path.stat().st_size < 2**24
    command = [sys.executable, "-m", "harness.cli", "analyse", str(path), "--json"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, preexec_fn=limit)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_of_a_megabyte_is_cut_and_takes_no_time() -> None:
    for end in (
        b"a" * 1_000_000,
        b" " * 1_000_000,
        b"a " * 500_000,
        b"1" * 1_000_000,
        b"=" * 1_000_000,
        b"loss" * 250_000,
        b"step " * 200_000,
    ):
        curve = analyse("-", stdin=TEXT.encode() + b"Step 30000: loss=0.5 " + end + b"\n")
        assert (curve.points, curve.last_step) == (301, 30_000)
        assert any(f"{LONGEST_LINE:,} bytes" in told for told in curve.partial)


def test_forms_that_are_never_the_same_are_read_without_a_pattern_each() -> None:
    rows = "".join(f"Step {s}: word{s}x{s * 7919:x} loss=0.5\n" for s in range(20_000))
    assert len(read_records(open_source("-", rows.encode()).text).columns["step"]) == 20_000


def test_a_program_that_greets_before_every_line_is_no_hang() -> None:
    rows = "".join(f"Running on: host\nStep {s}: loss=0.5\n" for s in range(20_000))
    assert analyse("-", stdin=rows.encode()).points == 20_000


class Failing(io.RawIOBase):
    """A file whose disk fails after `data`, which comes in one piece."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data, self._left = self._left, b""
        buffer[: len(data)] = data
        return len(data)


def test_a_disk_that_fails_in_the_middle_leaves_what_was_read() -> None:
    curve = analyse("-", stdin=Failing(TEXT.encode()))
    assert curve.points == 300
    assert curve.partial == ["the file cannot be read to its end: Input/output error"]
    packed = analyse("-", stdin=Failing(gzip.compress(TEXT.encode())[:-20]))
    assert packed.points > 200
    assert packed.partial[0].startswith("the packed file is cut off or damaged")
    with pytest.raises(HarnessError) as error:
        open_source("-", Failing(b""))
    assert error.value.code == "log-unreadable"


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), Path("/dev/full")):
        with pytest.raises(HarnessError) as error:
            open_source(str(path))
        assert error.value.code == "log-unreadable"
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(HarnessError) as error:
        open_source(str(run))
    assert error.value.code == "run-without-metrics"
    with pytest.raises(HarnessError) as error:
        open_source("a\0b")
    assert error.value.code in ("log-missing", "log-unreadable")


def test_a_run_s_metrics_stay_in_the_run_and_a_typed_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.log").write_text(TEXT)
    (tmp_path / "link.log").symlink_to(tmp_path / "mine.log")
    assert analyse(str(tmp_path / "link.log")).points == 300
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").symlink_to(tmp_path / "mine.log")
    with pytest.raises(UnsafeFile) as error:
        open_source(str(tmp_path / "run"))
    assert error.value.code == "file-leaves-root"


def test_an_endless_pipe_of_zeros_is_refused() -> None:
    command = f"cat /dev/zero | {sys.executable} -m harness.cli analyse -"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "[log-binary]" in done.stderr


@pytest.mark.parametrize("hole", [32, 4000, 3_000_000])
def test_a_hole_of_zeros_is_no_part_of_a_log(hole: int) -> None:
    """A machine that lost its power leaves one, and so does a log that was emptied while it was written."""
    whole, lines = len(steps()), TEXT.splitlines(keepends=True)
    first, second = "".join(lines[:100]), "".join(lines[100:])
    for text, points in (
        (TEXT + "\0" * hole, whole),
        (TEXT + "Step 30000: grad_n" + "\0" * hole, whole),
        ("\0" * hole + TEXT, whole),
        (first + "Step 10000: gra" + "\0" * hole + second, whole),
    ):
        curve = analyse("-", stdin=text.encode())
        assert (curve.points, curve.verdict, curve.partial) == (points, "learning", [])


def test_an_archive_with_zeros_is_no_log() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("train.log")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT.encode()))
    for data in (file.getvalue(), bytes(100_000), bytes(100) + b"\n"):
        with pytest.raises(HarnessError) as caught:
            analyse("-", stdin=data)
        assert caught.value.code == "log-binary"


def test_a_log_over_a_block_s_edge_loses_nothing() -> None:
    rows = log(range(60_000), falling(60_000))
    for text in (
        rows,
        rows.replace("\n", "\r\n"),
        rows.replace("\n", "\r"),
        "\r".join(rows.split("\n")) + "\n",
    ):
        assert analyse("-", stdin=text.encode()).points == 60_000
    assert analyse("-", stdin=rows.encode("utf-16")).points == 60_000


def test_zeros_behind_a_gzip_member_are_passed_over_a_piece_at_a_time(tmp_path: Path) -> None:
    text = log(range(200), falling(200)).encode()
    path = tmp_path / "padded.log.gz"
    path.write_bytes(
        gzip.compress(text[: len(text) // 2]) + bytes(100) + gzip.compress(text[len(text) // 2 :])
    )
    with path.open("ab") as file:
        file.truncate(file.tell() + 2**31)
    assert analyse(str(path)).points == 200


def test_a_gzip_file_that_is_cut_off_is_read_to_its_end(tmp_path: Path) -> None:
    packed = gzip.compress(log(range(2_000), falling(2_000)).encode())
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    curve = analyse(str(tmp_path / "cut.gz"))
    assert 100 < curve.points < 2_000
    assert any("cut off" in text for text in curve.partial)
