"""Tests what the verb `replay` prints, writes and exits with, without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from harness.artifacts.replayed import Replayed
from harness.cli import app
from harness.errors import HarnessError
from harness.replay import engine, replay
from harness.run.directory import RunDir


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(_: object, run: RunDir, *__: object) -> Replayed:
        return Replayed(run=str(run.path), manifest_sha256="0" * 64, content=None, verdict="equal")

    monkeypatch.setattr(engine, "connect", lambda: None)
    monkeypatch.setattr(replay, "replay", equal)


def called(run: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["replay", str(run), "--json", *options])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "hers").mkdir(parents=True)
    return tmp_path / "runs" / "hers"


def test_the_verdict_is_printed_and_written_beside_the_run(run: Path) -> None:
    done = called(run)
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (0, "equal")
    assert json.loads((run.parent / "hers.replayed.json").read_text())["verdict"] == "equal"
    assert [*run.iterdir()] == []


def test_where_it_cannot_be_written_it_is_printed_all_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(replay, "output", lambda _: tmp_path / "file" / "x.json")
    done = called(run)
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (0, "equal")
    assert "--to FILE" in done.stderr


def test_a_file_that_was_asked_for_and_cannot_be_written_is_an_error_after_the_answer(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = called(run, "--to", str(tmp_path / "file" / "x.json"))
    assert json.loads(done.stdout)["verdict"] == "equal"
    assert isinstance(done.exception, HarnessError)
    assert done.exception.code == "not-writable"
