"""Tests the one definition of a run's steps, in `harness.run.steps`: its names and its parts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.run.steps import (
    COMMIT,
    INTERRUPTED,
    interrupted_saves,
    interrupted_step,
    is_whole,
    missing,
    newest_step,
    resumes_after,
    step_directories,
    step_number,
    steps_taken,
    whole_steps,
)
from tests.support.step_writer import OURS, put_step

BACKENDS: tuple[Backend, ...] = ("ours", "openpi")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("0", 0),
        ("7", 7),
        ("07", 7),
        ("000000000000", 0),
        (str(2**53 - 1), 2**53 - 1),
        (str(2**53), None),
        ("9" * 20, None),
        ("9" * 5000, None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("1_000", None),
        ("1.0", None),
        (" 1", None),
        ("1\n", None),
        ("", None),
        ("９", None),
        ("٣", None),
        ("²", None),
        ("last", None),
        ("7.orbax-checkpoint-tmp-0", None),
    ],
)
def test_a_name_is_a_step_when_it_is_a_plain_number(name: str, step: int | None) -> None:
    assert step_number(name) == step


def test_what_is_whole_is_what_was_whole_before(tmp_path: Path) -> None:
    whole = put_step(tmp_path, 7)
    assert sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()) == sorted(OURS)
    assert is_whole(whole)
    assert missing(whole) == []


@pytest.mark.parametrize("part", OURS)
@pytest.mark.parametrize("spoil", ["gone", "a directory", "a link to nowhere"])
def test_a_step_without_one_of_its_parts_is_not_whole(tmp_path: Path, part: str, spoil: str) -> None:
    step = put_step(tmp_path, 7)
    (step / part).unlink()
    if spoil == "a directory":
        (step / part).mkdir()
    elif spoil == "a link to nowhere":
        (step / part).symlink_to("nowhere")
    assert missing(step) == [part]
    assert (whole_steps(tmp_path), newest_step(tmp_path), resumes_after(tmp_path)) == ([], None, 0)
    # openpi writes no file of ours, and may keep its arrays in another way.
    assert whole_steps(tmp_path, "openpi") == ([] if part == COMMIT else [7])


@pytest.mark.parametrize("name", ["07", "-1", "1e3", "９", str(2**53), "7.orbax-checkpoint-tmp-0", "last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_run_resumes_from_another_name(tmp_path: Path, name: str, backend: Backend) -> None:
    put_step(tmp_path, name)
    assert whole_steps(tmp_path, backend) == []
    put_step(tmp_path, 3)
    assert newest_step(tmp_path, backend) == 3


def test_links_and_files_are_no_steps(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    put_step(checkpoints, 3)
    put_step(tmp_path / "other", 9)
    (checkpoints / "9").symlink_to(tmp_path / "other" / "9")
    (checkpoints / "8").symlink_to("8")
    (checkpoints / "10").write_text("")
    assert step_directories(checkpoints) == [(3, checkpoints / "3")]
    assert whole_steps(checkpoints) == [3]
    # openpi's Orbax follows a link to a directory, and begins where that ends.
    assert whole_steps(checkpoints, "openpi") == [3, 9]


def test_orbax_takes_the_steps_that_openpi_is_said_to_resume_from(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=None, create=True)
    with ocp.CheckpointManager(tmp_path / "c", options=options) as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave({"a": np.ones(3)}))
    for name in ("07", "９", "-3", "2.orbax-checkpoint-tmp-1"):
        shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / name)
    (tmp_path / "c" / "8").symlink_to("2")
    (tmp_path / "c" / "12").write_text("")
    with ocp.CheckpointManager(tmp_path / "c", options=options) as manager:
        assert sorted(manager.all_steps()) == whole_steps(tmp_path / "c", "openpi") == [1, 2, 8]


def test_steps_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        put_step(tmp_path, step)
    assert whole_steps(tmp_path) == [9, 20, 100]
    assert (newest_step(tmp_path), resumes_after(tmp_path)) == (100, 100)
    assert whole_steps(tmp_path / "not there") == []


def test_openpi_counts_from_zero(tmp_path: Path) -> None:
    put_step(tmp_path, 0, backend="openpi")
    assert (newest_step(tmp_path, "openpi"), steps_taken(0, "openpi")) == (0, 1)
    # Upstream does not resume from it when it is alone.
    assert resumes_after(tmp_path, "openpi") == 0
    put_step(tmp_path, 19, backend="openpi")
    assert resumes_after(tmp_path, "openpi") == 20
    assert (whole_steps(tmp_path), steps_taken(19)) == ([], 19)


def test_interrupted_saves(tmp_path: Path) -> None:
    put_step(tmp_path, 3)
    names = ["12.orbax-checkpoint-tmp-0", "4.orbax-checkpoint-tmp-deleted-1", "x.orbax-checkpoint-tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    assert [path.name for path in interrupted_saves(tmp_path)] == names
    assert [interrupted_step(name) for name in names] == [12, 4, None]
    assert interrupted_saves(tmp_path / "not there") == []


@pytest.mark.parametrize("look", [whole_steps, newest_step, step_directories, interrupted_saves])
def test_looking_changes_nothing(tmp_path: Path, look: Callable[[Path], object]) -> None:
    put_step(tmp_path, 3)
    (tmp_path / f"4{INTERRUPTED}").mkdir()
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    look(tmp_path)
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_step_that_may_not_be_read_is_refused_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "10").mkdir()

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    # Root, who runs some of these tests, may read everything.
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(HarnessError) as caught:
        newest_step(tmp_path)
    assert caught.value.code == "checkpoint-unreadable"
    assert "chmod -R u+rX" in caught.value.fix
    # What is below a closed directory cannot be opened by its own mode.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path.parent)
    with pytest.raises(HarnessError) as caught:
        newest_step(tmp_path)
    assert caught.value.fix.startswith(f"chmod u+rwX {tmp_path.parent},")
