"""Tests datasets made to do harm, their files and their metadata: no file outside is opened."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from harness.data import fields
from harness.data.dataset import content_hash, describe
from harness.data.lerobot import open_dataset
from harness.data.metadata import read_metadata
from harness.errors import HarnessError
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    FIRST,
    SECOND,
    VIDEO,
    change_info,
    recipe,
)
from tests.support.strangers import code_of


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
    assert code_of(lambda: describe(recipe(tmp_path / "set"))) == want


def test_a_fifo_is_no_metadata(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    (root / "meta/info.json").unlink()
    os.mkfifo(root / "meta/info.json")
    assert code_of(lambda: describe(recipe(root))) == "not-a-dataset"


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
    assert code_of(lambda: content_hash(root)) == "dataset-path-unsafe"


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
    change_info(root, **INFO[name])
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
    assert code_of(lambda: read_metadata(root)).startswith("dataset-")


def test_a_line_without_an_end_and_lines_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writer.write(tmp_path / "set")
    path = root / "meta/episodes.jsonl"
    lines = path.read_text()
    path.write_text(lines + " " * (1 << 21))
    assert code_of(lambda: read_metadata(root)) == "dataset-metadata-invalid"
    path.write_text(lines * 3)
    monkeypatch.setattr("harness.data.listings.MOST_EPISODES", 5)
    assert code_of(lambda: read_metadata(root)) == "dataset-metadata-invalid"


def test_a_length_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"length": 2**46})
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    info = json.loads((root / "meta/info.json").read_text())
    del info["total_frames"]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert code_of(lambda: open_dataset(root, state="observation.state", actions="action").columns) in (
        "dataset-too-large",
        "dataset-rows-mismatch",
    )


def test_a_number_is_shown_without_its_million_digits() -> None:
    with pytest.raises(HarnessError) as caught:
        fields.integer({"a": 10**100_000}, "a", "x")
    assert len(str(caught.value)) < 300
