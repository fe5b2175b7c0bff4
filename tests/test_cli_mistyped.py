"""Tests what the command line says of what no verb takes, and of what is refused before there is a run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, to_yaml
from harness.run.directory import RunDir
from harness.run.job import job_of
from harness.run.revision import version
from tests.test_cli import harness


def test_a_wrong_number_of_loader_processes_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    for text in ("many", "²", "-1"):
        done = harness(
            "train", "--recipe=smoke", HARNESS_RUNS=str(tmp_path / "runs"), HARNESS_LOADER_WORKERS=text
        )
        assert done.returncode == 2
        assert "[loader-workers-invalid]" in done.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "pi05_libero"], "Did you mean --recipe pi05_libero?"),
        (["plan", "my own.yaml"], "Did you mean --recipe 'my own.yaml'?"),
        (["train", "train.steps=3"], "Did you mean --set train.steps=3?"),
        (["data", "DATASET"], "Did you mean --dataset"),
        (["doctor", "RUN"], "Did you mean --run"),
        (["probe", "all"], "extra argument(s) (all)."),
        (["train", "--global_batch", "3"], "--set train.global_batch=…"),
        (["plan", "--dataset=x"], "--set data.dataset=…"),
        (["train", "--recpie=smoke"], "--recipe"),
        (["probe", "--seed=3"], "No such option"),
        (["help", "trian"], "train"),
    ],
)
def test_what_no_verb_takes_is_told_with_what_was_meant(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    for name, file in (("a set", "meta/info.json"), ("a run", "recipe.yaml")):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).touch()
    places = {"DATASET": str(tmp_path / "a set"), "RUN": str(tmp_path / "a run")}
    done = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize("verb", [["status"], ["verify"], ["report"], ["train", "--run"]])
def test_a_path_that_this_user_may_not_read_has_a_fix(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "it's a run"
    run.mkdir()
    monkeypatch.setattr(os, "access", lambda _, mode, **__: mode != os.R_OK)
    refusal = CliRunner().invoke(app, [*verb, str(run)]).exception
    assert isinstance(refusal, HarnessError)
    assert refusal.code == "path-refused"
    assert f"chmod u+rwX {shlex.quote(str(run))}" in refusal.fix


def test_a_training_takes_its_dataset_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # Refusals of datasets name `--dataset DIR`, whichever verb met them.
    asked = []

    def ready(given: Any, *_: object) -> None:
        asked.extend(given.sets)
        raise typer.Exit

    monkeypatch.setattr("harness.flow.begin.get_ready", ready)
    CliRunner().invoke(app, ["train", "--set=train.seed=3", "--dataset", "frames #2"])
    assert load_recipe("smoke", asked).data.dataset == "frames #2"


@pytest.mark.parametrize("arguments", [["-h"], ["help"], ["train", "-h"], ["help", "train"]])
def test_help_is_asked_for_in_other_ways_too(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert ("--resume" if "train" in arguments else "calibrate") in done.output


def test_the_module_is_the_command_and_says_its_version() -> None:
    command = [sys.executable, "-m", "harness", "--version"]
    environment = os.environ | {"HARNESS_COMMIT": "0123abc-dirty"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"harness {version()} (commit 0123abc-dirty)\n")
    with Path("pyproject.toml").open("rb") as file:
        assert version() == tomllib.load(file)["project"]["version"]


def test_who_names_a_trained_run_alone_is_told_to_resume_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    # Another recipe than the one that is meant where none is named.
    (run / "recipe.yaml").write_text(to_yaml(load_recipe("smoke", ["train.steps=7"])))
    (run / "metrics.jsonl").write_text("")
    done = harness("train", "--run", str(run))
    assert (done.returncode, "[run-exists]" in done.stderr) == (2, True), done.stderr
    with pytest.raises(HarnessError) as refused:
        job_of(RunDir(run))
    assert refused.value.fix.startswith(f"harness train --resume --run {run} ")
