"""Tests `inspect` on interrupted saves and on damaged steps."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.inspect import inspect
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint

DAY_S = 86_400


def only(path: Path, pattern: str) -> Path:
    (found,) = path.glob(pattern)
    return found


def age(path: Path, seconds: float) -> None:
    for place in (path, *path.rglob("*")):
        os.utime(place, (time.time() - seconds,) * 2)


def test_interrupted_save(tmp_path: Path) -> None:
    root = openpi_checkpoint("lora", tmp_path)
    place = only(root, "6.*")
    age(place, DAY_S)
    (save,) = inspect(root).interrupted
    assert (save.step, save.safe_to_delete) == (6, True)
    assert save.age_s == pytest.approx(DAY_S, abs=60)
    assert any(line.startswith("params: begun") for line in save.missing)
    assert not any(line.startswith(("train_state", "assets")) for line in save.missing)
    assert str(STEP["lora"]) in save.reason
    assert save.bytes == sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    (alone,) = inspect(place).interrupted
    assert (alone.missing, alone.safe_to_delete, alone.reason) == (save.missing, True, save.reason)


def test_a_deleted_save_is_named_without_control_of_the_terminal(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from harness.cli import app

    name = "\x1b[1A\x1b[2K\x1b[32mverdict: equal\x1b[0m\nforged"
    root = shutil.copytree(openpi_checkpoint("lora", tmp_path), tmp_path / name)
    place = only(root, "6.*")
    age(place, DAY_S)
    said = CliRunner().invoke(app, ["inspect", str(root), "--clean"])
    assert (said.exit_code, place.exists()) == (0, False)
    assert "\x1b" not in said.output
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"deleted {tmp_path.resolve()}/\\x1b[1A")


def test_save_that_may_be_under_way_is_not_safe_to_delete(tmp_path: Path) -> None:
    root = openpi_checkpoint("lora", tmp_path)
    place = only(root, "6.*")
    age(place, 5)
    assert inspect(root).interrupted[0].safe_to_delete is False
    age(place, DAY_S)
    with (place / "train_state" / "_METADATA").open():
        held = inspect(root).interrupted[0]
    assert (held.safe_to_delete, str(os.getpid()) in held.reason) == (False, True)


@pytest.mark.parametrize(
    ("break_it", "word"),
    [
        (
            lambda step: (step / "params/_METADATA").write_text(
                (step / "params/_METADATA").read_text()[:500]
            ),
            "_METADATA is truncated",
        ),
        (lambda step: (step / "params/_METADATA").unlink(), "_METADATA is missing"),
        (lambda step: (step / "train_state/_METADATA").write_text("[]"), "train_state: _METADATA"),
        (
            lambda step: (step / "train_state/manifest.ocdbt").write_bytes(b"junk"),
            "manifest.ocdbt or its index is damaged",
        ),
        (
            lambda step: max((step / "params").rglob("d/*"), key=lambda file: file.stat().st_size).unlink(),
            "is missing",
        ),
        (
            lambda step: os.truncate(
                max((step / "params").rglob("d/*"), key=lambda file: file.stat().st_size), 100
            ),
            "is truncated: 100 bytes",
        ),
        (lambda step: (step / "_CHECKPOINT_METADATA").unlink(), "_CHECKPOINT_METADATA"),
        (
            lambda step: (step / "_CHECKPOINT_METADATA").write_text(
                '{"item_handlers": {}, "commit_timestamp_nsecs": null}'
            ),
            "no time of commit",
        ),
        (
            lambda step: (step / "train_state").rename(step / "train_state.orbax-checkpoint-tmp-3"),
            "train_state/",
        ),
    ],
)
def test_damage_is_found_by_metadata_and_the_rest_is_told(tmp_path: Path, break_it: Any, word: str) -> None:
    root = openpi_checkpoint("lora", tmp_path)
    break_it(root / str(STEP["lora"]))
    found = inspect(root)
    assert found.steps[0].complete is False
    assert any(word in line for line in found.steps[0].missing), found.steps[0].missing
    assert found.partial is True
    assert any("not whole" in finding for finding in found.findings)
    assert (found.parameters_total, found.lora.present) == (608_672, True)


def test_parameters_without_any_readable_index(tmp_path: Path) -> None:
    root = openpi_checkpoint("full", tmp_path)
    (root / str(STEP["full"]) / "params" / "manifest.ocdbt").unlink()
    found = inspect(root)
    assert (found.steps[0].complete, found.partial, found.lora.present, found.parameters_total) == (
        False,
        True,
        None,
        None,
    )
    assert found.unknown["lora"]
