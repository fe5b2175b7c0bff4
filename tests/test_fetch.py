"""Tests that harness fetch gets the files of a run, reports their place, and needs no JAX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.artifacts import Fetched
from harness.cli import app
from harness.errors import HarnessError
from harness.received.files import UnsafeFile


def fetched(*words: str) -> Fetched:
    done = CliRunner().invoke(app, ["fetch", *words, "--json"])
    if done.exception is not None:
        raise done.exception
    return Fetched.model_validate_json(done.stdout)


def test_what_a_recipe_needs_is_here_afterwards(tmp_path: Path) -> None:
    found = fetched("--recipe", "smoke", "--run", str(tmp_path))
    # Its weights are random ones.
    assert [part.what for part in found.parts] == ["dataset", "tokenizer"]
    assert all(Path(part.path).exists() and part.bytes > 0 for part in found.parts)
    assert json.loads((tmp_path / "fetched.json").read_text())["recipe"] == "smoke"


def test_what_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        fetched("--recipe", "smoke", "--set", f"weights.source={tmp_path}/none")
    assert (caught.value.code, caught.value.fix) == ("not-here", "--set weights.source=PATH")


def test_local_weights_are_measured_below_their_directory_alone(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_bytes(bytes(1000))
    (tmp_path / "mine").write_bytes(bytes(5000))
    (tmp_path / "weights" / "b").symlink_to(tmp_path / "mine")
    (part,) = [
        part
        for part in fetched("--recipe", "smoke", "--set", f"weights.source={tmp_path}/weights").parts
        if part.what == "weights"
    ]
    assert part.bytes == 1000


def test_a_tree_without_end_is_not_walked(tmp_path: Path) -> None:
    deep = tmp_path / "weights" / "/".join("d" * 70)
    deep.mkdir(parents=True)
    with pytest.raises(UnsafeFile):
        fetched("--recipe", "smoke", "--set", f"weights.source={tmp_path}/weights")


def test_no_jax_is_loaded() -> None:
    program = (
        "import sys\nfrom harness.cli import app\napp(['fetch', '--recipe', 'smoke'],"
        " standalone_mode=False)\nprint('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
