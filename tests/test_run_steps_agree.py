"""Tests that status, inspect, --resume and the supervisor say the same of a run's steps.

They all ask `harness.run.steps`.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Upstream
from harness.artifacts.plan import Backend
from harness.checkpoint.inspect import inspect
from harness.checkpoint.locate import locate
from harness.checkpoint.scan import find
from harness.checkpoint.steps import read_steps
from harness.checkpoint.store import Store
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, to_yaml
from harness.run.directory import RunDir
from harness.run.status import read_status
from harness.run.steps import (
    ASSETS,
    COMMIT,
    DIGESTS,
    HARNESS,
    INTERRUPTED,
    PARAMS,
    RECORD,
    TRAIN_STATE,
    missing,
    newest_step,
    resumes_after,
    step_directories,
    whole_steps,
)
from tests.support.item_writer import write_step
from tests.support.report_run import manifest
from tests.support.step_writer import OURS


def run_of(path: Path, backend: Backend) -> RunDir:
    run = RunDir(path)
    upstream = Upstream(commit="c", pinned="c") if backend == "openpi" else None
    run.checkpoints.mkdir(parents=True)
    run.write(manifest(upstream=upstream))
    (path / "recipe.yaml").write_text(to_yaml(load_recipe("smoke")))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole step with arrays, which the others are copies of."""
    step = tmp_path_factory.mktemp("steps") / "1"
    write_step(step, {"action_in_proj/bias": np.ones(2, np.float32)}, ["action_in_proj/bias"])
    (step / HARNESS).mkdir()
    (step / RECORD).write_text("{}")
    (step / DIGESTS).write_text('{"leaves": {}, "files": {}}')
    assert missing(step) == []
    return step


def lose(step: Path, part: str) -> None:
    place = step / part
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def litter(checkpoints: Path, whole: Path, seed: int) -> None:
    """Steps of random names, of which random parts are missing."""
    chance = random.Random(seed)
    parts = [*OURS, PARAMS, TRAIN_STATE, HARNESS, DIGESTS]
    for number in chance.sample(range(1, 60), 6):
        name = chance.choice(
            [f"{number}"] * 6 + [f"0{number}", f"{number}{INTERRUPTED}-0", f"-{number}", "９"]
        )
        place = checkpoints / name
        if os.path.lexists(place):
            continue
        kind = chance.random()
        if kind < 0.1:
            place.write_text("")
        elif kind < 0.2:
            place.symlink_to(chance.choice(["1", name, str(whole)]))
        else:
            shutil.copytree(whole, place)
            for part in chance.sample(parts, chance.choice([0, 0, 0, 1, 1, 2, 4])):
                lose(place, part)


def resumed_step(checkpoints: Path) -> int | None:
    """The step that --resume takes."""
    store = Store(checkpoints, keep_every_steps=1)
    try:
        return store.latest()
    finally:
        store.close()


def whole_by_inspect(run: RunDir) -> list[int]:
    try:
        found = read_steps(find(run.path))
    except HarnessError as error:
        if error.code not in ("checkpoint-empty", "not-a-checkpoint"):
            raise
        return []
    return [int(step.path.name) for step in found if step.report.complete and not step.lacks]


@pytest.mark.parametrize("seed", range(40))
def test_status_inspect_and_resume_agree(tmp_path: Path, whole: Path, seed: int) -> None:
    run = run_of(tmp_path / "run", "ours")
    litter(run.checkpoints, whole, seed)
    resumed = resumed_step(run.checkpoints)
    assert read_status(run).saved_step == resumed
    assert whole_by_inspect(run) == whole_steps(run.checkpoints)
    assert (resumed or 0) == resumes_after(run.checkpoints)


@pytest.mark.parametrize("seed", range(20))
def test_they_agree_on_openpis_steps_too(tmp_path: Path, whole: Path, seed: int) -> None:
    run = run_of(tmp_path / "run", "openpi")
    litter(run.checkpoints, whole, seed)
    newest = newest_step(run.checkpoints, "openpi")
    assert read_status(run).saved_step == (None if newest is None else newest + 1)
    # inspect reads the arrays' metadata too, which openpi does when it resumes.
    assert set(whole_by_inspect(run)) <= set(whole_steps(run.checkpoints, "openpi"))


def test_the_random_steps_are_of_every_kind(tmp_path: Path, whole: Path) -> None:
    counts = []
    for seed in range(40):
        (tmp_path / str(seed)).mkdir()
        litter(tmp_path / str(seed), whole, seed)
        counts.append((len(whole_steps(tmp_path / str(seed))), len(step_directories(tmp_path / str(seed)))))
    assert {whole for whole, _ in counts} >= {0, 1, 2, 3}
    assert sum(there - whole for whole, there in counts) > 40


@pytest.mark.parametrize("part", [*OURS, PARAMS, TRAIN_STATE, HARNESS])
def test_inspect_says_what_a_resume_lacks(tmp_path: Path, whole: Path, part: str) -> None:
    run = run_of(tmp_path / "run", "ours")
    step = shutil.copytree(whole, run.checkpoints / "5")
    lose(step, part)
    found = inspect(run.path)
    said = " ".join(found.findings)
    assert (part if part in (COMMIT, RECORD) else part.partition("/")[0]) in said, found
    # One loss is told once: as a step that is not whole, or as one that no run resumes from.
    assert ("is not whole" in said) != ("does not resume" in said), said


@pytest.mark.parametrize("name", ["05", "6"])
def test_inspect_says_that_a_run_resumes_from_no_other_name(tmp_path: Path, whole: Path, name: str) -> None:
    run = run_of(tmp_path / "run", "ours")
    shutil.copytree(whole, run.checkpoints / "4")
    if name == "6":
        (run.checkpoints / name).symlink_to("4")
    else:
        shutil.copytree(whole, run.checkpoints / name)
    found = inspect(run.path)
    # Their parameters are there, to predict with and to export.
    assert all(step.complete for step in found.steps)
    (said,) = [text for text in found.findings if "does not resume" in text]
    assert f"from {name}" in said
    assert "a run resumes from no other" in said
    assert locate(str(run.path)).path.name == name


def test_parameters_alone_in_a_run_are_whole_and_nothing_resumes_from_them(
    tmp_path: Path, whole: Path
) -> None:
    run = run_of(tmp_path / "run", "ours")
    step = shutil.copytree(whole, run.checkpoints / "4")
    shutil.rmtree(step / TRAIN_STATE)
    (step / COMMIT).unlink()
    found = inspect(run.path)
    assert [each.complete for each in found.steps] == [True]
    assert any("does not resume from 4" in text for text in found.findings)
    assert locate(str(run.path)).path.name == "4"
    assert resumed_step(run.checkpoints) is None


def test_a_step_that_is_no_runs_needs_no_file_of_ours(tmp_path: Path, whole: Path) -> None:
    step = shutil.copytree(whole, tmp_path / "checkpoints" / "5")
    shutil.rmtree(step / HARNESS)
    assert [each.complete for each in inspect(tmp_path / "checkpoints").steps] == [True]
    # Released weights, an export that was put into a run: parameters alone.
    run = run_of(tmp_path / "run", "ours")
    shutil.copytree(whole / PARAMS, run.path / "export" / PARAMS)
    assert [each.complete for each in inspect(run.path / "export").steps] == [True]


def test_what_is_said_of_an_interrupted_save_is_where_a_resume_begins(tmp_path: Path, whole: Path) -> None:
    run = run_of(tmp_path / "run", "ours")
    shutil.copytree(whole, run.checkpoints / "4")
    later = shutil.copytree(whole, run.checkpoints / "8")
    shutil.rmtree(later / ASSETS)
    half = shutil.copytree(whole, run.checkpoints / "9")
    (half / RECORD).unlink()
    left = run.checkpoints / f"12{INTERRUPTED}"
    left.mkdir()
    os.utime(left, (0, 0))
    for path in (run.path, left):
        (save,) = inspect(path).interrupted
        assert (save.step, save.safe_to_delete) == (12, True)
        # Step 8 has lost its statistics, which inspect tells; a resume has the run's own.
        assert "training resumes from step 8" in save.reason
    assert resumed_step(run.checkpoints) == read_status(run).saved_step == 8
    assert [step.step for step in inspect(run.path).steps if step.complete] == [4]
