"""Tests how what is typed becomes suites, tasks and directories; and where evaluations are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.artifacts.evaluation import Evaluation
from harness.cli import app
from harness.errors import HarnessError
from harness.evaluate.judge import judge
from harness.evaluate.options import against_of, asked_of, directory_of, rules_of, suites_of, tasks_of
from harness.evaluate.schedule import keys
from harness.run.directory import RunDir
from harness.run.evaluations import evaluations_of, is_evaluation, judgements, sentence
from harness.simulate.controls import recordings
from tests.support.evaluated import asked, driven, outcomes, setting
from tests.support.report_run import Page

OPENPI = rules_of("openpi", [])[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("goal", ["libero_goal"]),
        ("libero_goal, 10", ["libero_goal", "libero_10"]),
        ("spatial,object,goal,10", ["libero_spatial", "libero_object", "libero_goal", "libero_10"]),
        ("", []),
    ],
)
def test_suites_are_named_shortly(text: str, found: list[str]) -> None:
    assert suites_of(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("0,3-5", {"libero_goal": [0, 3, 4, 5], "libero_10": [0, 3, 4, 5]}),
        ("goal/3,10/0-2", {"libero_goal": [3], "libero_10": [0, 1, 2]}),
        ("libero_10/1", {"libero_10": [1]}),
    ],
)
def test_tasks_are_of_each_suite_or_of_one(text: str | None, found: object) -> None:
    assert tasks_of(text, ["libero_goal", "libero_10"]) == found


@pytest.mark.parametrize("text", ["", "a", "-1", "3-", "1,,2", "goal/", "0x1", "99999"])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="tasks-unreadable"):
        tasks_of(text, ["libero_goal"])


def test_a_suite_whose_tasks_are_not_named_is_not_asked() -> None:
    found = asked_of("zero", "goal,10", "goal/3", 1, OPENPI)
    assert found.tasks == {"libero_goal": [3]}


def test_the_protocol_says_how_many_episodes() -> None:
    assert len(keys(asked_of("zero", "goal", None, None, OPENPI))) == 500
    assert len(keys(asked_of("zero", "goal", None, None, rules_of("lerobot", [])[0]))) == 100


def test_a_replay_asks_for_all_that_is_recorded_and_nothing_else() -> None:
    found = keys(asked_of("replay", "spatial,object,goal,10", None, None, OPENPI))
    assert [key[:3] for key in found] == [each[:3] for each in recordings()]
    some = keys(asked_of("replay", "goal", None, 1, OPENPI))
    assert {key[:3] for key in some} == {
        each[:3] for each in recordings() if each.suite == "libero_goal" and each.episode == 0
    }


def test_a_departure_that_changes_nothing_is_none() -> None:
    rules, said = rules_of("openpi", ["replan_steps=5", "max_steps.libero_10=100"])
    assert said == ["max_steps.libero_10 is 100 instead of the protocol's 520"]
    assert rules.values["max_steps.libero_10"] == 100


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("checkpoint", "step9", "spatial,object,goal,10", None, 50), "step9-openpi-4suites-50"),
        (("checkpoint", "step9", "goal", None, 10), "step9-openpi-goal-10"),
        (("zero", "zero", "goal,10", "0,2", 1), "zero-openpi-10+goal-tasks0.2-1"),
        (("server", "server", "90", None, 1), "server-openpi-90-1"),
    ],
)
def test_a_directory_is_named_by_what_it_holds(arguments: tuple, name: str, tmp_path: Path) -> None:
    policy, tag, suites, tasks, episodes = arguments
    what = asked_of(policy, suites, tasks, episodes, OPENPI)
    assert directory_of(tmp_path, policy, tag, OPENPI, what, {}) == tmp_path / "evaluations" / name


def evaluation(path: Path, rate: float, seed: int = 1, when: float | None = None) -> RunDir:
    """A judged evaluation of one suite."""
    what = asked(["libero_goal"], episodes=2)
    found = driven(path, setting(what), outcomes(what, rate, seed=seed))
    judge(found)
    if when is not None:
        os.utime(path / Evaluation.FILE, (when, when))
    return found


def test_the_newest_evaluation_of_a_run_is_found_and_no_link_is_followed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert evaluations_of(run) == []
    evaluation(run / "evaluations" / "b", 0.9, when=1e9)
    evaluation(run / "evaluations" / "a", 0.5, when=2e9)
    evaluation(tmp_path / "elsewhere", 1.0, when=3e9)
    (run / "evaluations" / "c").symlink_to(tmp_path / "elsewhere")
    (run / "evaluations" / "d").mkdir()
    assert [each.path.name for each in evaluations_of(run)] == ["b", "a"]
    found = against_of(str(run))
    assert isinstance(found, RunDir)
    assert found.path.name == "a"
    assert is_evaluation(found.path)
    assert against_of(str(found.path)) is not None
    (run / "evaluations" / "a" / Evaluation.FILE).write_text("{")
    assert len(judgements(run)) == 1


def test_an_evaluation_in_one_sentence_hides_nothing(tmp_path: Path) -> None:
    found = judge(evaluation(tmp_path / "a", 1.0), "openpi:pi05_libero")
    told = sentence(
        found.model_copy(update={"setting": found.setting.model_copy(update={"deviations": ["x"]})})
    )
    assert told.startswith("success 100.0 % of 20 episodes in the simulator, 95 % interval 83.9 to 100.0")
    assert "deviations: x" in told
    assert f"{found.verdict} against openpi:pi05_libero" in told


def test_a_run_without_evaluation_cannot_be_compared_with(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="evaluation-missing"):
        against_of(str(tmp_path))


def reported(*paths: Path, output: Path) -> str:
    done = CliRunner().invoke(app, ["report", *map(str, paths), "--output", str(output)])
    assert done.exit_code == 0, done.exception
    return Page(output.read_text()).text


def test_report_shows_an_evaluation_alone_and_two_side_by_side(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", 0.9).path
    two = evaluation(tmp_path / "two", 0.5, seed=2).path
    assert "In the simulator" in reported(one, output=tmp_path / "a.html")
    both = reported(one, two, output=tmp_path / "b.html")
    assert "this evaluation beside two" in both
    assert "only two" in both


def test_report_of_two_runs_pairs_their_newest_evaluations(tmp_path: Path) -> None:
    for name, rate in (("ours", 0.9), ("theirs", 0.4)):
        evaluation(tmp_path / name / "evaluations" / "first", 0.1, when=1e9)
        evaluation(tmp_path / name / "evaluations" / "last", rate, when=2e9)
        (tmp_path / name / "manifest.json").write_text("{}")
    alone = reported(tmp_path / "ours", output=tmp_path / "a.html")
    assert "In the simulator: last" in alone
    assert "Other evaluations of this run" in alone
    both = reported(tmp_path / "ours", tmp_path / "theirs", output=tmp_path / "b.html")
    assert "In the simulator: last, beside theirs last" in both


def test_report_takes_no_mixture_of_runs_and_evaluations(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", 0.9).path
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    done = CliRunner().invoke(app, ["report", str(one), str(run)])
    assert isinstance(done.exception, HarnessError)
    assert done.exception.code == "report-mixed"
