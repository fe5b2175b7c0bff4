"""Tests `harness analyse` as a command: exit codes, stdout, and written files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.analyse.curve import analyse
from harness.artifacts import Curve
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, to_yaml
from tests.support.console_log import REPORT, falling, flat, log, steps


def harness(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "analyse", *arguments]
    return subprocess.run(
        command,
        env=os.environ | {"COLUMNS": "400"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_directory(path: Path) -> Path:
    path.mkdir()
    (path / "recipe.yaml").write_text(to_yaml(load_recipe("smoke")))
    line = (
        '{{"step":{s},"loss":{v:.5f},"grad_norm":1.0,"param_norm":{n},"learning_rate":0.003,'
        '"step_s":0.5,"data_s":0.3,"time":{t}}}\n'
    )
    rows = [
        line.format(s=s, v=v, n=69.6 + s / 100, t=1_700_000_000 + s / 2) for s, v in enumerate(falling(60))
    ]
    (path / "metrics.jsonl").write_text("".join(rows))
    return path


def test_exit_codes_and_json_from_a_pipe() -> None:
    for text, code, verdict in (
        (log(steps(), falling()), 0, "learning"),
        (log(steps(), flat()), 1, "not learning"),
        (REPORT, 1, "inconclusive"),
    ):
        done = harness("-", "--json", stdin=text)
        assert done.returncode == code, done.stderr
        assert Curve.model_validate_json(done.stdout).verdict == verdict


def test_a_run_directory_gets_its_curve(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    done = harness(str(run), "--json")
    assert done.returncode == 0, done.stderr
    printed = Curve.model_validate_json(done.stdout)
    assert Curve.model_validate_json((run / "curve.json").read_text()) == printed
    assert (printed.form, printed.recipe) == ("run", "smoke")
    assert printed.learning.source == "rates of the log itself"
    assert printed.throughput is not None
    assert printed.throughput.data_share == pytest.approx(0.6)
    assert {"loader-sets-pace"} <= {finding.code for finding in printed.findings}
    before = (run / "curve.json").read_bytes()
    assert harness("--run", str(run)).returncode == 0
    assert (run / "curve.json").read_bytes() == before


def test_a_damaged_recipe_costs_the_recipe_and_not_the_verdict(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (run / "recipe.yaml").write_text("foo: [")
    found = analyse(str(run))
    assert (found.recipe, found.verdict, found.partial[0].partition(":")[0]) == (
        "pi05_libero",
        "learning",
        "recipe.yaml cannot be used",
    )


def test_of_a_log_and_its_reference_the_one_without_a_loss_is_named(tmp_path: Path) -> None:
    for name, loss in (("good", "0.5"), ("nan", "nan")):
        (tmp_path / name).write_text("step,loss\n" + "".join(f"{step},{loss}\n" for step in range(40)))
    for log_, reference, says in (("good", "nan", "nan has no"), ("nan", "good", "the log has no")):
        with pytest.raises(HarnessError, match=says) as refused:
            analyse(str(tmp_path / log_), references=[str(tmp_path / reference)])
        assert refused.value.code == "reference-without-loss"


def test_a_log_without_a_run_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(REPORT)
    assert harness(str(tmp_path / "train.log")).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


def test_the_table_says_verdict_reason_need_and_fix(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(REPORT)
    out = harness(str(tmp_path / "train.log")).stdout
    for words in (
        "inconclusive",
        "because",
        "to be sure",
        "freeze_filter",
        "harness train --recipe pi05_libero_lora",
        "1803.159",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "path-missing"),
        (["nowhere.log"], "log-missing"),
        (["."], "run-without-metrics"),
        (["-"], "log-empty"),
        (["BINARY"], "log-binary"),
        (["OTHER"], "log-without-loss"),
        (["GOOD", "--recipe=pi05_liberoo"], "recipe-unknown"),
        (["GOOD", "--reference=OTHER"], "log-without-loss"),
    ],
)
def test_bad_input_is_one_screen_with_the_fix(arguments: list[str], code: str, tmp_path: Path) -> None:
    files = {"BINARY": os.urandom(4000), "OTHER": b"item 1: reward 3\n", "GOOD": REPORT.encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        arguments = [argument.replace(name, str(tmp_path / name)) for argument in arguments]
    done = harness(*[str(tmp_path) if argument == "." else argument for argument in arguments], stdin="")
    assert done.returncode == 2, done.stdout
    assert f"[{code}]" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
