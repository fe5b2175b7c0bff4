"""Tests the room that opens other people's files: names that are not paths, and files below their root."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.received.files import UnsafeFile, open_received, read_received, stays, walk
from harness.received.names import below, is_commit, why_no_name, why_no_relative_name
from harness.received.writing import open_to_write

HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "a\\b",
    "/etc",
    "a\0",
    "a\nb",
    "a\x1b]0;x",
    "a\u202eb",
    " a",
    "a ",
    "~",
    "-x",
    "x" * 256,
    "\x85",
    "\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name(text: str) -> None:
    assert why_no_name(text)


@pytest.mark.parametrize("text", ["libero", "pi05_libero-001", "日本", "a.b", "...", "x" * 255])
def test_a_name(text: str) -> None:
    assert why_no_name(text) is None


def test_reserved_names() -> None:
    assert why_no_name("lock", frozenset({"lock"}))


@pytest.mark.parametrize("text", ["/a", "a/..", "../a", "a//b", "a/", "", "a/./b", "a/../../b"])
def test_no_relative_name(text: str) -> None:
    assert why_no_relative_name(text)


@pytest.mark.parametrize("text", ["/a", "a/..", "../a", "a//b", "", "a\0"])
def test_a_name_below_a_directory(text: str) -> None:
    assert below(Path("/root"), "physical-intelligence/libero", "data.asset_id") == Path(
        "/root/physical-intelligence/libero"
    )
    with pytest.raises(HarnessError) as error:
        below(Path("/root"), text, "data.asset_id")
    assert (error.value.code, "data.asset_id" in error.value.fix) == ("name-leads-out", True)


def test_an_asset_id_of_openpi() -> None:
    assert why_no_relative_name("physical-intelligence/libero") is None


@given(st.text())
def test_a_name_stays_in_its_directory(text: str) -> None:
    if why_no_name(text) is None:
        assert Path("/root/x", text).parent == Path("/root/x")
        assert os.path.normpath(f"/root/x/{text}") == f"/root/x/{text}"


def test_commits() -> None:
    assert is_commit("15a9616f3c1d5ba8e7f1d9d6f0a3c2b1e4d5f6a7")
    assert not any(
        is_commit(text)
        for text in (
            "--upload-pack=x",
            "15a9616",
            None,
            5,
            "A" * 40,
            "15a9616f3c1d5ba8e7f1d9d6f0a3c2b1e4d5f6a7\n",
        )
    )


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_received(tmp_path / "a", tmp_path, 5) == b"12345"
    with pytest.raises(UnsafeFile) as error:
        read_received(tmp_path / "a", tmp_path, 4)
    assert error.value.code == "file-too-large"
    with pytest.raises(FileNotFoundError):
        read_received(tmp_path / "none", tmp_path, 4)


def test_links_are_followed_inside_of_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (root / "file").write_text("mine")
    (tmp_path / "secret").write_text("secret")
    (root / "below/in").symlink_to("../file")
    (root / "below/out").symlink_to("../../secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    with pytest.raises(UnsafeFile):
        open_received(root / "a\0b", root)
    assert read_received(root / "below/in", root, 10) == b"mine"
    for stray in ("below/out", "up/secret", "loop"):
        with pytest.raises((UnsafeFile, OSError)) as error:
            read_received(root / stray, root, 10)
        assert stray == "loop" or (
            isinstance(error.value, UnsafeFile) and error.value.code == "file-leaves-root"
        )
    # The root itself may be a link: its owner made it.
    (tmp_path / "link").symlink_to(root)
    assert read_received(tmp_path / "link/file", tmp_path / "link", 10) == b"mine"


def test_the_hub_cache_keeps_its_files_beside_the_snapshot(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    (snapshot / "meta").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("x")
    (snapshot / "meta/info.json").symlink_to("../../../blobs/1")
    assert stays(snapshot, snapshot / "meta/info.json")
    assert stays(snapshot / "meta", snapshot / "meta/info.json")
    (tmp_path / "other").write_text("x")
    (snapshot / "bad").symlink_to("../../other")
    assert not stays(snapshot, snapshot / "bad")


def test_special_files_are_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "zero").symlink_to("/dev/zero")
        begin = time.monotonic()
        for name in ("fifo", "s"):
            with pytest.raises(UnsafeFile) as error:
                open_received(tmp_path / name, tmp_path)
            assert error.value.code == "file-not-regular"
        with pytest.raises(UnsafeFile):
            open_received(tmp_path / "zero", tmp_path)
        with pytest.raises(UnsafeFile):
            open_received(Path("/dev/zero"), Path("/dev"))
        with pytest.raises(IsADirectoryError):
            open_received(tmp_path, tmp_path)
        assert time.monotonic() - begin < 5


def test_a_walk_visits_each_file_once_and_names_what_it_left(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/one").write_text("1")
    (root / "a/two").write_text("2")
    (root / "loop").symlink_to(".")
    (root / "in").symlink_to("a/two")
    (root / "out").symlink_to("/etc/hostname")
    os.mkfifo(root / "fifo")
    strays: list[Path] = []
    assert sorted(str(path.relative_to(root)) for path in walk(root, strays=strays)) == [
        "a/b/one",
        "a/two",
        "in",
    ]
    assert sorted(path.name for path in strays) == ["fifo", "loop", "out"]


def test_a_tree_that_is_too_deep(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    with pytest.raises(UnsafeFile) as error:
        list(walk(tmp_path))
    assert error.value.code == "tree-too-large"


def test_a_file_is_made_and_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        with os.fdopen(open_to_write(tmp_path / "log", append=True), "r+b") as file:
            file.write(b"x")
    assert (tmp_path / "log").read_bytes() == b"xx"


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "device", "directory"])
def test_what_is_no_file_is_not_written_to(tmp_path: Path, kind: str) -> None:
    path, outside = tmp_path / "log", tmp_path / "outside"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null" if kind == "device" else outside)
    if kind == "link":
        outside.write_text("mine")
    with pytest.raises(UnsafeFile) as caught:
        open_to_write(path)
    assert caught.value.code == "file-not-regular"
    assert kind != "dangling" or not outside.exists()
    assert kind != "link" or outside.read_text() == "mine"
