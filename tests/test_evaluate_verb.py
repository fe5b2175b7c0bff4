"""Tests the verb evaluate as a process: stops, kills, resumes, exit codes, and what is refused at once."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.artifacts.episodes import EPISODES
from harness.cli import app
from harness.errors import HarnessError
from harness.run.evaluations import evaluations_of
from tests.support.evaluating import actions_of, policy, simulator, verb

GOAL = ("--suites", "goal", "--tasks", "0-2", "--episodes", "4", "--videos", "none")


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    """stdout and stderr of a process that ended with this code."""
    out, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    return out, said


def lines(out: Path) -> list[bytes]:
    path = out / EPISODES
    return path.read_bytes().splitlines() if path.exists() else []


def wait_for(out: Path, count: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while len(lines(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def slow(seen: dict, number: int) -> object:
    time.sleep(0.03)
    return actions_of(seen, number)


def test_a_killed_evaluation_goes_on_and_its_file_is_the_same(tmp_path: Path) -> None:
    """kill -9, then SIGTERM, then to the end; beside one that was never stopped, with other workers."""
    fake, out, whole = simulator(tmp_path / "simulator"), tmp_path / "out", tmp_path / "whole"
    with policy(slow) as server:
        options = ("--server", server.uri, *GOAL, "--workers", "2", "--out", str(out))
        killed = verb(*options, simulator=fake)
        wait_for(out, 2)
        killed.kill()
        ended(killed, -signal.SIGKILL)
        kept = len(lines(out))
        stopped = verb(*options, "--resume", simulator=fake)
        wait_for(out, kept + 2)
        stopped.terminate()
        _, said = ended(stopped, 2)
        assert "error [stopped]" in said
        assert "--resume" in said
        assert not (out / "evaluation.json").exists()
        assert 4 <= len(lines(out)) < 12
        ended(verb(*options, "--resume", simulator=fake), 0)
        ended(verb("--server", server.uri, *GOAL, "--workers", "1", "--out", str(whole), simulator=fake), 0)
    assert (out / EPISODES).read_bytes() == (whole / EPISODES).read_bytes()
    assert len(lines(whole)) == 12


def test_no_process_outlives_a_killed_evaluation(tmp_path: Path) -> None:
    fake, out = simulator(tmp_path / "simulator", slow_s=0.05), tmp_path / "out"
    with policy() as server:
        process = verb("--server", server.uri, *GOAL, "--workers", "2", "--out", str(out), simulator=fake)
        wait_for(out, 1)
        children = _children(process.pid)
        assert len(children) == 2
        process.kill()
        ended(process, -signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(each) for file in listed for each in file.read_text().split()]


def test_json_is_the_artifact_and_the_exit_code_is_the_verdict(tmp_path: Path) -> None:
    fake = simulator(tmp_path / "simulator", rate=0.0)
    with policy() as server:
        options = ("--server", server.uri, "--suites", "goal", "--episodes", "1", "--json")
        out, _ = ended(verb(*options, "--out", str(tmp_path / "a"), simulator=fake), 0)
        assert json.loads(out) == json.loads((tmp_path / "a" / "evaluation.json").read_text())
        claim = ("--compare", "openpi:pi05_libero")
        below, _ = ended(verb(*options, *claim, "--out", str(tmp_path / "b"), simulator=fake), 1)
        assert json.loads(below)["verdict"] == "below"


def test_an_episode_that_was_not_measured_is_told_by_the_exit_code(tmp_path: Path) -> None:
    fake = simulator(tmp_path / "simulator", wrong={"libero_goal/1/1": "error"})
    with policy() as server:
        options = ("--server", server.uri, *GOAL, "--out", str(tmp_path / "a"))
        out, _ = ended(verb(*options, simulator=fake), 1)
        assert "1 episodes were not measured" in out.replace("\n", " ")
        ended(verb(*options, "--resume", simulator=fake), 0)


def test_a_control_lies_beside_the_runs_under_a_name_that_says_what_it_is(tmp_path: Path) -> None:
    fake = simulator(tmp_path / "simulator")
    runs = {"HARNESS_RUNS": str(tmp_path / "runs")}
    for options in (GOAL, ("--suites", "goal,10", "--episodes", "1", "--depart", "max_steps.libero_10=15")):
        ended(verb("--policy", "zero", *options, simulator=fake, **runs), 0)
    names = [each.path.name for each in evaluations_of(tmp_path / "runs")]
    assert names == ["zero-openpi-goal-tasks0.1.2-4", "zero-openpi-10+goal-1-maxstepslibero1015"]


def test_a_server_needs_its_key(tmp_path: Path) -> None:
    from harness.serve.access import Key
    from tests.support.served import serving

    fake, key = simulator(tmp_path / "simulator"), tmp_path / "key"
    key.write_text("a-key-of-sixteen-characters\n")
    with serving(key=Key("a-key-of-sixteen-characters")) as running:
        options = ("--server", running.uri, *GOAL, "--out", str(tmp_path / "a"))
        _, said = ended(verb(*options, simulator=fake), 2)
        assert "error [server-key]" in said
        ended(verb(*options, "--api-key-file", str(key), simulator=fake), 0)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--policy", "zero", "--suites", "libero_goals"), "suite-unknown"),
        (("--policy", "zero", "--suites", "goal", "--tasks", "10"), "task-unknown"),
        (("--policy", "zero", "--suites", "goal", "--tasks", "a"), "tasks-unreadable"),
        (("--policy", "zero", "--suites", "goal", "--tasks", "10/3"), "suite-unknown"),
        (("--policy", "zero", "--episodes", "51"), "episodes-impossible"),
        (("--policy", "zero", "--workers", "0"), "workers-impossible"),
        (("--policy", "zero", "--videos", "some"), "videos-unknown"),
        (("--policy", "zero", "--protocol", "openpie"), "protocol-unknown"),
        (("--policy", "zero", "--depart", "max_steps.libero_10"), "departure-unreadable"),
        (("--policy", "zero", "--depart", "max_steps.libero_10=fast"), "protocol-invalid"),
        (("--policy", "zero", "--depart", "replan=3"), "protocol-invalid"),
        (("--policy", "zero", "--compare", "openpi:pi06"), "claim-unknown"),
        (("--policy", "zero", "--margin", "2"), "margin-impossible"),
        (("--policy", "zero", "--sequential"), "sequential-impossible"),
        (
            (
                "--policy",
                "zeros",
            ),
            "control-unknown",
        ),
        (("--policy", "replay", "--suites", "90"), "recording-missing"),
        ((), "policy-unclear"),
        (("runs/x", "--policy", "zero"), "policy-unclear"),
        (("runs/none",), "checkpoint-missing"),
        (("--server", "http://x"), "server-address"),
        (("--server", "ws://127.0.0.1:9", "--api-key-file", "none"), "api-key-unreadable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: str
) -> None:
    monkeypatch.setenv("HARNESS_SIMULATOR", str(simulator(tmp_path / "simulator")))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["evaluate", *options, "--out", str(out)])
    assert isinstance(done.exception, HarnessError), done.output
    assert done.exception.code == code
    assert done.exception.fix
    assert not (out / EPISODES).exists()


def test_without_a_simulator_nothing_is_driven(tmp_path: Path) -> None:
    _, said = ended(verb("--policy", "zero", "--out", str(tmp_path / "a"), simulator=tmp_path / "none"), 2)
    assert "error [simulator-missing]" in said
    assert not (tmp_path / "a").exists()


def test_patience_without_a_limit_is_only_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operating system waits for ever in one call."""
    monkeypatch.setenv("HARNESS_SIMULATOR", str(simulator(tmp_path / "simulator")))
    asked = ("--policy", "zero", "--suites", "goal", "--tasks", "0", "--episodes", "1")
    done = CliRunner().invoke(app, ["evaluate", *asked, "--patience", "inf", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output


def test_a_comparison_with_itself_is_refused_before_any_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_SIMULATOR", str(simulator(tmp_path / "simulator")))
    asked = ("--policy", "zero", "--suites", "goal", "--tasks", "0", "--out", str(tmp_path / "out"))
    assert CliRunner().invoke(app, ["evaluate", *asked, "--episodes", "1"]).exit_code == 0
    before = (tmp_path / "out" / EPISODES).read_bytes()
    again = ("--episodes", "2", "--resume", "--compare", str(tmp_path / "out"))
    done = CliRunner().invoke(app, ["evaluate", *asked, *again])
    assert isinstance(done.exception, HarnessError), done.output
    assert done.exception.code == "evaluation-itself"
    assert (tmp_path / "out" / EPISODES).read_bytes() == before
