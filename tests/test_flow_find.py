"""Tests what is said of a run that cannot be trained as asked: each fix runs, and nothing is lost by it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from harness.artifacts import Manifest
from harness.errors import HarnessError
from harness.flow.find import check_name, recipe_of, refuse_behind, refuse_started
from harness.profile.profile import profile
from harness.run.directory import MANIFEST, RECIPE, RunDir
from tests.support.report_run import full_run
from tests.support.step_writer import put_step

NAMES = ("smoke-001", "-it's", 'a "b" $x', "ñ ü", "a;b")


@pytest.mark.parametrize("name", NAMES)
def test_another_run_is_named_by_the_option_that_named_this_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "checkpoints").mkdir(parents=True)
    run = RunDir(tmp_path / name)
    with pytest.raises(HarnessError) as refusal:
        refuse_started(run, named=False)
    words = shlex.split(refusal.value.fix)
    other = RunDir(Path(words[words.index("--run") + 1]))
    assert other.path == tmp_path / f"{name}-2"
    refuse_started(other, named=False)
    if not name.startswith("-"):
        with pytest.raises(HarnessError) as refusal:
            refuse_started(run, named=True)
        words = shlex.split(refusal.value.fix)
        check_name(words[words.index("--name") + 1])


def test_a_run_in_the_working_directory_has_a_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "r")
    with pytest.raises(HarnessError) as refusal:
        refuse_started(RunDir(Path()), named=False)
    assert str(tmp_path / "r-2") in refusal.value.fix


def test_a_resume_does_not_end_before_what_is_saved(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    refuse_behind(run, 1, "ours")
    put_step(run.checkpoints, 60)
    with pytest.raises(HarnessError, match="at step 60 already") as refusal:
        refuse_behind(run, 10, "ours")
    assert "--steps 70" in refusal.value.fix
    refuse_behind(run, 60, "ours")
    refuse_behind(run, 70, "ours")


@pytest.mark.parametrize("damage", ["{a: [1", None])
def test_a_recipe_that_cannot_be_read_is_put_aside_and_not_deleted(
    tmp_path: Path, damage: str | None
) -> None:
    run = full_run(tmp_path / "a run")
    file = run.path / RECIPE
    file.unlink(missing_ok=True)
    if damage is None:
        file.mkdir()
    else:
        file.write_text(damage)
    with pytest.raises(HarnessError) as refusal:
        recipe_of(run, None, [], own_first=True)
    moved = shlex.split(refusal.value.fix.partition(" && ")[0])
    assert moved[:2] == ["mv", str(file)]
    file.rename(moved[2])
    manifest = run.read(Manifest)
    assert manifest is not None
    assert recipe_of(run, None, [], own_first=True).name == manifest.recipe["name"]


def test_a_finished_run_is_profiled_beside_it(tmp_path: Path) -> None:
    run = full_run(tmp_path / "a run")
    with pytest.raises(HarnessError) as refusal:
        profile(run.path)
    assert refusal.value.code == "profile-missing"
    words = shlex.split(refusal.value.fix)
    assert words[words.index("--recipe") + 1] == str(run.path / RECIPE)
    assert words[words.index("--run") + 1] == str(tmp_path / "a run-profile")
    (run.path / MANIFEST).unlink()
    with pytest.raises(HarnessError) as refusal:
        profile(tmp_path)
    assert refusal.value.code == "run-missing"
