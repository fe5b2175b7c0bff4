"""Tests that processes which see different directories find out before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.run import shared_directory
from harness.run.peers import ALONE, Peers
from harness.run.shared_directory import check_shared
from tests.support.threads import together


def test_one_directory_is_shared_and_left_as_it_was(tmp_path: Path) -> None:
    assert together(3, lambda peers: check_shared(tmp_path, peers)) == [None] * 3
    check_shared(tmp_path, ALONE)
    assert list(tmp_path.iterdir()) == []


def test_directories_of_their_own_are_refused_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_directory, "_LATE_S", 0.3)

    def looked(peers: Peers) -> HarnessError:
        with pytest.raises(HarnessError) as caught:
            check_shared(tmp_path / str(max(peers.index, 1)), peers)
        return caught.value

    errors = together(3, looked)
    assert {error.code for error in errors} == {"directory-not-shared"}
    for error in errors:
        assert error.got == f"process 2 (host-2) at {tmp_path / '2'}"
    assert list(tmp_path.rglob(".shared-*")) == []


def test_a_file_that_shows_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = shared_directory.read_received

    def late(*args: object) -> bytes:
        seen.append(args)
        if len(seen) < 3:
            raise FileNotFoundError
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_directory, "read_received", late)
    check_shared(tmp_path, ALONE)
    assert len(seen) == 3
