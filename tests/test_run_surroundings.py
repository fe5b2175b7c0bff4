"""Tests the record of a run's source: it covers the whole package, and git is asked about its checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import harness
from harness.received.litter import named
from harness.run.surroundings import source_digest, source_dirty
from tests.support.litter import lay

PACKAGE = Path(harness.__file__).parent


def test_the_digest_is_of_the_whole_package(tmp_path: Path) -> None:
    copy = tmp_path / "harness"
    shutil.copytree(PACKAGE, copy)
    lay(copy)
    assert source_digest(copy) == source_digest()
    changed = copy / "model" / "gemma.py"
    changed.write_text(changed.read_text() + "\n")
    assert source_digest(copy) != source_digest()


def test_a_mac_s_copies_beside_the_shipped_files_are_none_of_them(tmp_path: Path) -> None:
    """As macOS's tar takes them to Linux."""
    for name in ("plan/atlas", "plan/gpus", "recipe"):
        own = sorted(path.name for path in (PACKAGE / name).iterdir() if path.suffix in (".json", ".yaml"))
        copy = Path(shutil.copytree(PACKAGE / name, tmp_path / name))
        lay(copy)
        assert named(copy.iterdir(), ".yaml" if name == "recipe" else ".json") == [
            copy / each for each in own
        ]


def test_git_is_asked_about_the_checkout_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = PACKAGE.parent
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout here")
    monkeypatch.delenv("HARNESS_COMMIT", raising=False)
    command = ["git", "-C", str(checkout), "status", "--porcelain", "--", "harness", "docker"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert source_dirty() == (bool(said.strip()), "")
