"""Tests the choice among saves: paired over episodes, and honest where two cannot be told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.artifacts.choice import Choice
from harness.artifacts.held_out import read_held_out
from harness.choose.choose import choose
from harness.choose.intervals import FEW, intervals, student_quantile
from harness.cli import app
from harness.errors import HarnessError
from harness.run.directory import RunDir
from harness.run.status import read_status
from tests.support.held_out import falling, line, run_of


@pytest.mark.parametrize("episodes", [4, 30])
def test_saves_are_told_apart_by_pairs_although_their_own_intervals_overlap(
    tmp_path: Path, episodes: int
) -> None:
    run = run_of(tmp_path / "run", falling(episodes, 4), [10, 20, 30, 40])
    found = choose(run)
    assert (found.chosen, found.best, found.alike) == (40, 40, [])
    first, last = found.marks[0], found.marks[-1]
    assert first.loss.low is not None
    assert last.loss.high is not None
    assert first.loss.low < last.loss.high
    assert all(mark.told_apart for mark in found.marks[:-1])
    assert ("bootstrap" in found.interval) == (episodes >= FEW)
    assert "Student" in found.interval
    assert "every other one on disk is worse" in found.answer


@pytest.mark.parametrize(("episodes", "saves"), [(4, 3), (10, 20), (25, 20)])
def test_saves_that_differ_by_noise_alone_are_told_apart_in_at_most_5_percent(
    tmp_path: Path, episodes: int, saves: int
) -> None:
    told = 0
    for seed in range(20):
        lines = falling(episodes, saves, fall=0.0, noise=0.5, seed=seed)
        found = choose(run_of(tmp_path / f"{seed}", lines, [10 * (i + 1) for i in range(saves)]))
        told += any(mark.told_apart for mark in found.marks)
    # More than 3 of 20 has a probability of 1.6 % where each has 5 %. These seeds do not change.
    assert told <= 3


def test_the_same_files_give_the_same_choice_byte_for_byte(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", falling(40, 3), [10, 20, 30])
    assert choose(run).model_dump_json() == choose(run).model_dump_json()


def test_a_deleted_save_is_never_chosen_and_is_named(tmp_path: Path) -> None:
    lines = [line(10, [1.0, 2.0, 3.0]), line(20, [0.5, 1.4, 2.6]), line(30, [0.9, 1.9, 2.9])]
    found = choose(run_of(tmp_path / "run", lines, [10, 30]))
    assert (found.chosen, found.best) == (30, 20)
    assert "step 20, which is no longer on disk, was lower" in found.answer
    assert any("not on disk" in note for note in found.notes)
    assert found.commands[0].startswith("harness predict ")
    assert "checkpoints/30" in found.commands[0]


def test_no_save_on_disk_is_an_answer_of_no(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", falling(3, 2), [])
    assert choose(run).chosen is None
    result = CliRunner().invoke(app, ["choose", str(run.path), "--json"])
    assert result.exit_code == 1
    assert Choice.model_validate_json(result.stdout).answer.startswith("none is left to choose")


def test_one_episode_tells_nothing_apart(tmp_path: Path) -> None:
    found = choose(run_of(tmp_path / "run", [line(10, [2.0]), line(20, [1.0])], [10, 20]))
    assert found.chosen == 20
    assert found.alike == [10]
    assert found.marks[0].told_apart is None
    assert any("one held-out episode" in note for note in found.notes)


def test_a_save_that_is_not_finite_is_left_out_and_told(tmp_path: Path) -> None:
    lines = [line(10, [1.0, 2.0]), line(20, [0.1, None])]
    run = run_of(tmp_path / "run", lines, [10, 20])
    found = choose(run)
    assert found.chosen == 10
    assert found.marks[1].loss.mean is None
    assert any("not finite" in note for note in found.notes)
    (run.path / "recipe.yaml").write_text("name: x\n")
    status = read_status(run)
    assert (status.held_out_loss, status.held_out_step) == (None, 20)
    assert any("not finite" in finding for finding in status.findings)


def test_the_error_of_actions_is_a_share_of_each_moving_dimension(tmp_path: Path) -> None:
    lines = [line(10, [1.0, 2.0], error=0.2), line(20, [1.5, 2.5], error=0.1)]
    found = choose(run_of(tmp_path / "run", lines, [10, 20]), "action")
    assert found.chosen == 20
    assert [mark.action.mean for mark in found.marks] == pytest.approx([0.2, 0.1])
    assert [each.mean for each in found.marks[1].errors] == pytest.approx([0.1, 0.2, 0.0])
    switches = found.marks[0].switches
    assert switches is not None
    assert (switches.count, switches.missed, switches.offsets) == (4, 1, {-1: 1, 0: 1, 2: 1})


def test_lines_of_other_frames_are_not_compared(tmp_path: Path) -> None:
    lines = [line(10, [9.0, 9.0], rows_sha256="b" * 64), *falling(2, 2)]
    found = choose(run_of(tmp_path / "run", lines, [10, 20]))
    assert [mark.step for mark in found.marks] == [10, 20]
    assert found.marks[0].loss.mean != 9.0
    assert any("other frames" in note for note in found.notes)


def test_torn_lines_are_counted_and_saves_without_a_line_are_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", falling(3, 2), [10, 20, 25])
    with run.held_out.open("a") as file:
        file.write('{"step": 30, "lo')
    found = choose(run)
    assert any("torn" in note for note in found.notes)
    assert any("step 25 on disk is not measured" in note and "--fill" in note for note in found.notes)


@pytest.mark.parametrize("value", [1e308, -1e308, 0.0])
def test_extreme_values_bring_nothing_down(tmp_path: Path, value: float) -> None:
    lines = [line(10, [value, value, 1.0], error=5e307), line(20, [1.0, value, value])]
    found = choose(run_of(tmp_path / "run", lines, [10, 20]))
    assert json.loads(found.model_dump_json())


def test_a_run_without_a_holdout_is_refused_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(HarnessError, match=r"held no episode out") as refusal:
        choose(RunDir(tmp_path / "run"))
    assert refusal.value.code == "not-held-out"
    assert "train.holdout.episodes" in refusal.value.fix
    with pytest.raises(HarnessError) as refusal:
        choose(RunDir(tmp_path / "nowhere"))
    assert refusal.value.code == "run-missing"
    with pytest.raises(HarnessError, match="is no run") as refusal:
        choose(RunDir(tmp_path))
    assert refusal.value.code == "run-missing"


def test_another_way_to_compare_is_refused() -> None:
    result = CliRunner().invoke(app, ["choose", "runs/x", "--by", "success"])
    assert isinstance(result.exception, HarnessError)
    assert result.exception.code == "choice-unknown"


def test_of_two_lines_of_one_step_the_later_counts(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [line(10, [1.0, 1.0]), line(10, [2.0, 2.0])], [10])
    found = read_held_out(run.held_out, run.path)
    assert found is not None
    assert [each.loss for each in found.lines] == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("freedom", "level", "value"),
    # Source: any table of Student's t, such as NIST/SEMATECH e-Handbook 1.3.6.7.2.
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (5, 0.99, 4.032), (10, 0.95, 2.228), (18, 0.999, 3.922)],
)
def test_the_quantiles_are_those_of_the_table(freedom: int, level: float, value: float) -> None:
    assert student_quantile(freedom, level) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("episodes", [6, 20, 40])
def test_intervals_hold_the_true_mean_as_often_as_they_say(episodes: int) -> None:
    values = np.random.RandomState(1).standard_normal((episodes, 2_000))
    held = sum(each.low < 0 < each.high for each in intervals(values))  # type: ignore[operator]
    assert 0.94 <= held / 2_000 <= 0.96
