"""Tests what an image is taken for from inside of it: by a look, and by reading all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.image import here
from harness.image.contents import LIST, SUMMARY, UNREAD, of_directory
from harness.image.here import Here, claimed, examined
from harness.image.parts import read_summary, summary
from harness.run import surroundings
from harness.verify import found
from tests.support.image_root import SITE, make_listed_root, make_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_listed_root(tmp_path / "root")


def test_verify_reads_the_image_and_does_not_ask_what_it_says_of_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_IMAGE", "harness:cpu on debian:12")
    monkeypatch.setattr(surroundings, "claimed", lambda: pytest.fail("it was looked over first"))
    monkeypatch.setattr(found, "examined", lambda: examined(root))
    software, notes = found._read_here()
    assert (software.image_content, notes) == (summary(of_directory(root)).content, {})


@pytest.mark.parametrize(
    "text", ["", "[]", '{"content": 1, "parts": {}}', '{"content": "x", "parts": {"a": 1}}']
)
def test_a_summary_that_is_none_is_a_reason_and_no_content(root: Path, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_summary(text)
    (root / SUMMARY).write_text(text)
    assert "cannot be read" in claimed(root).unknown["image_content"]


def test_an_image_without_a_list_says_so(tmp_path: Path) -> None:
    told = claimed(make_root(tmp_path / "root"))
    assert isinstance(told, Here)
    assert told.content is None
    assert "has no list" in told.unknown["image_content"]


def made_anew(root: Path, *paths: Path) -> None:
    """Makes the files newer than the list."""
    later = (root / LIST).stat().st_mtime + 60
    for path in paths:
        os.utime(path, (later, later))


def test_a_file_that_came_later_than_the_list_is_seen(root: Path) -> None:
    path = root / SITE / "numpy/core.so"
    size = path.stat().st_size
    path.write_text("E" * size)
    made_anew(root, path)
    assert "changed after the list was made" in claimed(root).unknown["image_content"]


def test_files_that_were_made_anew_with_the_same_content_raise_no_doubt(root: Path) -> None:
    """As after a build that took the list from its cache and made the files again."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    made_anew(root, *(path for path in files if path != root / LIST))
    assert (root / "usr/lib/libc.so.6").stat().st_mtime > (root / LIST).stat().st_mtime
    # Whose they are in this checkout is no content.
    users = root / "etc/passwd"
    users.write_text(users.read_text().replace("caller:x:0:0", "caller:x:7:7"))
    made_anew(root, users)
    assert claimed(root).content == summary(of_directory(root)).content
    (root / SITE / "numpy/core.so").write_text("elg of numpy")
    made_anew(root, root / SITE / "numpy/core.so")
    why = claimed(root).unknown["image_content"]
    assert (
        why == f"the image is not what its list says: /{SITE}/numpy/core.so: changed after the list was made"
    )


def test_a_file_that_is_not_newer_than_the_list_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / SITE / "numpy/core.so"
    made_anew(root, path)
    read: list[str] = []
    monkeypatch.setattr(here, "hashes", lambda _, paths: read.extend(paths) or {})
    claimed(root)
    assert read == [f"{SITE}/numpy/core.so"]


def test_what_this_user_may_not_read_is_taken_as_the_list_says(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "etc/ld.so.conf"
    made_anew(root, path)
    monkeypatch.setattr(here, "hashes", lambda _, paths: dict.fromkeys(paths, UNREAD))
    assert claimed(root).content is not None


def test_a_file_that_goes_while_it_is_looked_at_is_a_reason_and_no_content(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> dict[str, str]:
        raise FileNotFoundError(2, "No such file or directory", "/etc/x")

    monkeypatch.setattr(here, "look", gone)
    assert "/etc/x" in claimed(root).unknown["image_content"]
