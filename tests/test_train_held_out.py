"""Tests the held-out pass: what it measures, and that a run with it is the same when killed or stopped."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import Manifest
from harness.artifacts.held_out import HeldOutLine
from harness.data.held_out_rows import rows_of
from harness.data.transforms import normalize, pad_last
from harness.run.directory import RunDir
from harness.run.job import job_of
from harness.train.held_out import HeldOutPass, Saves
from harness.train.held_out_file import HeldOutFile, values_of
from harness.train.loop import Outcome, train
from harness.train.state import TrainState
from tests.support.held_out import line
from tests.support.held_out_pass import Model, measured, pass_of
from tests.support.real_runs import STEPS, assert_same, harness, learned, metrics, small, start, wait_for
from tests.support.session import CACHE
from tests.support.tiny import tiny

KEYS = ("train.holdout.episodes=2", "data.degenerate_dimensions=pass_through")
HELD = [f"--set={key}" for key in KEYS]
# Of the two held-out episodes of the sample.
FRAMES = [13, 13]
# What a run's trainer makes, as against what it is told.
MADE = shutil.ignore_patterns("checkpoints", "wandb", "metrics.jsonl", "held_out.jsonl", "manifest.json")


class Heard:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)

    warn = say

    def phase(self, name: str) -> None: ...

    def step(self, line: Any, steps: int) -> None: ...


class Stopping(Heard):
    """Asks the run to stop while it logs the step before its last one, the `done`th."""

    def __init__(self, done: int) -> None:
        super().__init__()
        self._done = done

    def step(self, line: Any, steps: int) -> None:
        assert self._done < steps
        if line.step == self._done - 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def cache() -> Path:
    return CACHE


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with held-out episodes that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    harness(cache, *small(run, *HELD), WANDB_MODE="offline")
    return run


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines without what a clock says."""
    found = [json.loads(text) for text in (run / "held_out.jsonl").read_text().splitlines()]
    return [{key: value for key, value in one.items() if key not in ("seconds", "time")} for one in found]


def test_each_save_has_a_line_and_the_run_names_its_episodes(whole: Path) -> None:
    assert [one["step"] for one in lines(whole)] == [4, 8, 12]
    assert len({one["rows_sha256"] for one in lines(whole)}) == 1
    assert {one["parameters"] for one in lines(whole)} == {"average"}
    manifest = RunDir(whole).read(Manifest)
    assert manifest is not None
    assert manifest.held_out == lines(whole)[0]["episodes"]
    assert json.loads((whole / "dataset.json").read_text())["held_out"] == manifest.held_out
    assert json.loads((whole / "choice.json").read_text())["chosen"] == 12  # the others were deleted
    assert 'id="held-out"' in (whole / "report.html").read_text()


def test_wandb_has_the_held_out_values(whole: Path) -> None:
    (file,) = whole.glob("wandb/offline-run-*/run-*.wandb")
    assert b"held_out/loss" in file.read_bytes()
    assert b"held_out/action_error_6" in file.read_bytes()


def test_training_is_bitwise_the_same_without_the_pass(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay in this process keeps nothing, and so measures nothing."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = tmp_path / "again"
    shutil.copytree(whole, run, ignore=MADE)
    train(job_of(RunDir(run))._replace(keeps=False), Heard())
    assert learned(run) == learned(whole)
    assert not (run / "held_out.jsonl").exists()


def test_killed_and_resumed_has_the_same_lines_once(cache: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    process = start(cache, *small(run, *HELD))
    wait_for(lambda: len(metrics(run)) >= 6 and (run / "checkpoints" / "4").is_dir(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # As if it had been killed while it appended the next line.
    with (run / "held_out.jsonl").open("a") as file:
        file.write('{"step": 8, "para')
    harness(cache, "train", "--resume", "--run", str(run))
    assert_same(run, whole)
    assert lines(run) == lines(whole)


def test_a_save_of_a_stop_is_no_measured_one_and_fill_measures_it(
    cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in this process, so that the request comes between two steps that are known."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run, done = tmp_path / "stopped", 6
    shutil.copytree(whole, run, ignore=MADE)
    assert train(job_of(RunDir(run)), Stopping(done)) == Outcome(done, finished=False)
    assert (len(metrics(run)), (run / "checkpoints" / str(done)).is_dir()) == (done, True)
    assert [one["step"] for one in lines(run)] == [4]
    harness(cache, "choose", str(run), "--fill")
    assert done in [one["step"] for one in lines(run)]
    harness(cache, "train", "--resume", "--run", str(run))
    assert_same(run, whole)
    assert [one for one in lines(run) if one["step"] != done] == lines(whole)


def test_fill_gives_the_line_that_the_run_had(cache: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "emptied"
    shutil.copytree(whole, run)
    (run / "held_out.jsonl").unlink()
    out, _ = harness(cache, "choose", str(run), "--fill", "--json")
    assert lines(run) == lines(whole)[-1:]
    assert json.loads(out)["chosen"] == STEPS


def of_sample(model: Model, losses: np.ndarray | None = None, rows: int = 4) -> HeldOutPass:
    """The pass over the sample dataset."""
    return pass_of(tiny(*KEYS), model, losses, rows)


def recorded(one: HeldOutPass, row: int) -> np.ndarray:
    """What a model would give that repeats the recorded actions."""
    job = one._job
    chunk, _ = one._loader.sources[0].pictures.data.action_chunk(
        one.rows.frames[row], job.recipe.model.action_horizon
    )
    return pad_last(
        normalize(chunk, job.stats.norm_stats["actions"], "quantile"), job.recipe.model.action_dim
    )


def test_recorded_actions_have_no_error_and_no_switch_is_missed() -> None:
    found = measured(of_sample(recorded))
    assert np.max(np.array(found.error, np.float64)) < 1e-5
    assert [switch.offset for switch in found.switches] == [0] * len(found.switches)
    assert len(found.switches) > 0
    assert {switch.dimension for switch in found.switches} == {6}
    assert found.frames == FRAMES


@pytest.mark.parametrize("shift", [-1, 1, 2])
def test_a_switch_that_comes_early_or_late_is_told_in_frames(shift: int) -> None:
    def moved(one: HeldOutPass, row: int) -> np.ndarray:
        chunk = recorded(one, row)
        return chunk[np.clip(np.arange(len(chunk)) - shift, 0, len(chunk) - 1)]

    found = measured(of_sample(moved))
    # What is moved out of the chunk is missed.
    assert {switch.offset for switch in found.switches if switch.room[1] >= shift} == {shift}


def test_a_model_that_never_switches_misses_all_and_one_that_has_switched_is_early() -> None:
    def constant(value: float) -> Any:
        return lambda one, row: np.full_like(recorded(one, row), value)

    low, high = (measured(of_sample(constant(value))) for value in (-1.0, 1.0))
    for a, b in zip(low.switches, high.switches, strict=True):
        # One of the two constants is the state after the switch: it switched before the chunk began.
        assert sorted([a.offset, b.offset], key=lambda each: each is None) == [-a.room[0], None]


def test_errors_are_in_the_robots_units_and_losses_are_means_of_an_episodes_frames() -> None:
    def off(one: HeldOutPass, row: int) -> np.ndarray:
        stats = one._job.stats.norm_stats["actions"]
        chunk = recorded(one, row)
        chunk[:, 2] += 2 * 0.25 / (stats.q99[2] - stats.q01[2])
        return chunk

    found = measured(of_sample(off, np.arange(60.0)))
    errors = np.array(found.error, np.float64)
    np.testing.assert_allclose(errors[:, 2], 0.25, rtol=1e-3)
    assert np.delete(errors, 2, axis=1).max() < 1e-5
    first, second = FRAMES
    assert found.loss == [(first - 1) / 2, first + (second - 1) / 2]
    assert values_of(found)["held_out/loss"] == sum(map(float, found.loss)) / 2


def test_what_is_not_finite_is_null_and_not_a_number() -> None:
    losses = np.zeros(60)
    losses[3] = np.nan
    found = measured(of_sample(recorded, losses))
    assert found.loss == [None, 0.0]
    assert "held_out/loss" not in values_of(found)
    assert HeldOutLine.model_validate_json(found.model_dump_json()) == found


def test_a_stop_during_the_pass_leaves_it_off() -> None:
    assert of_sample(recorded).run(4, ({}, {}), stop=lambda: True) is None


def test_the_number_of_rows_at_a_time_changes_no_row() -> None:
    few, many = (measured(of_sample(recorded, np.arange(60.0), rows)) for rows in (3, 7))
    assert (few.loss, few.error, few.switches) == (many.loss, many.error, many.switches)


def test_a_row_depends_on_seed_episode_and_frame_alone() -> None:
    one = of_sample(recorded)
    job = one._job
    assert job.recipe.train.holdout is not None
    fewer = job.recipe.train.holdout.model_copy(update={"frames": 6})
    rows, some = one.rows, rows_of(fewer, one._loader.sources[0].pictures.data, job.dataset.held_out, 10, 32)
    assert len(some.frames) < len(rows.frames)
    for n, frame in enumerate(some.frames):
        at = rows.frames.index(frame)
        np.testing.assert_array_equal(some.noise[n], rows.noise[at])
        assert some.time[n] == rows.time[at]
    assert some.sha256 != rows.sha256
    assert np.all((rows.time > 0) & (rows.time <= 1))


def test_a_pass_that_a_stop_left_off_is_made_up_for_once(tmp_path: Path) -> None:
    one = of_sample(recorded)
    job = one._job
    heard, state = Heard(), TrainState(None, {}, {}, None, None)  # type: ignore[arg-type]
    saves = Saves(job._replace(run=RunDir(tmp_path)), one._program, one._loader, heard, start_step=10)
    assert saves.measure(state, 10, lambda: True) is None
    assert "step 10 was left off; --resume, or harness choose" in heard.texts[-1]
    assert not (tmp_path / "held_out.jsonl").exists()
    assert saves.measure(state, 10, lambda: False) is not None
    assert saves.measure(state, 10, lambda: False) is None
    # A save between two of the cadence is not measured.
    assert saves.measure(state, 13, lambda: False) is None
    assert len((tmp_path / "held_out.jsonl").read_text().splitlines()) == 1
    # A finished run has nothing to resume.
    assert saves.measure(state, 60, lambda: True) is None
    assert heard.texts[-1].endswith(f"left off; harness choose {tmp_path} --fill makes up for it")


def test_passes_that_take_much_of_the_time_are_told_with_fewer_frames(tmp_path: Path) -> None:
    one = of_sample(recorded)
    job = one._job
    heard = Heard()
    saves = Saves(job._replace(run=RunDir(tmp_path)), one._program, one._loader, heard, start_step=0)
    for _ in range(3):
        saves.tell_cost(line(10, [1.0] * 25, seconds=10.0), 1.0)
    told = [text for text in heard.texts if "took" in text]
    assert len(told) == 1
    assert "50%" in told[0]
    assert "train.holdout.frames=4 " in told[0]
    saves.tell_cost(line(10, [1.0], seconds=0.1), 1.0)
    assert len([text for text in heard.texts if "took" in text]) == 1


def test_the_file_keeps_lines_up_to_the_checkpoint_and_drops_what_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    file = HeldOutFile(path, start_step=0)
    for step in (4, 8, 12):
        file.write(line(step, [1.0]))
    before = path.read_bytes()
    with path.open("ab") as more:
        more.write(b'{"of": "another form"}\n{"step": 16')
    again = HeldOutFile(path, start_step=8)
    assert path.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
    assert (again.unread, path.with_name("held_out.jsonl.unread").read_bytes()) == (
        1,
        b'{"of": "another form"}\n',
    )
    assert again.has(8, "a" * 64)
    assert not again.has(12, "a" * 64)
    assert not again.has(8, "b" * 64)
