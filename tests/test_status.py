"""Tests `status` on the files that a living, a stopped and a killed process leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.artifacts import Candidate, Levers, Memory, Plan, Status
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, to_yaml
from harness.run import tail as module
from harness.run.directory import RunDir
from harness.run.lock import locked
from harness.run.status import newest_run, read_status
from harness.show.status import sparkline, status_table
from harness.verbs.status import status
from tests.support.step_writer import put_step

ROOT = Path(__file__).parent.parent
NOW = 1_790_000_000.0


def line(step: int, **changes: float) -> dict[str, float]:
    values = {
        "step": step,
        "loss": 2.0 / (step + 1),
        "grad_norm": 1.0,
        "param_norm": 1.0,
        "learning_rate": 1e-4,
        "step_s": 2.0,
        "data_s": 0.1,
    }
    return values | {"time": NOW - 100 + step} | changes


def make(
    path: Path, steps: int, *, saved: tuple[int, ...] = (), expected: float | None = None, of: int = 60
) -> RunDir:
    path.mkdir(parents=True, exist_ok=True)
    run = RunDir(path)
    (path / "recipe.yaml").write_text(to_yaml(load_recipe("smoke", [f"train.steps={of}"])))
    levers = Levers(platform="cpu", microbatch=8, prompt_tokens=48, cameras=["base_0_rgb"])
    chosen = Candidate(
        levers=levers,
        host_bytes=10**9,
        seconds_per_step=expected,
        verdict="fits",
        reason="it fits",
        source="compiled",
    )
    plan: dict[str, Any] = {
        "recipe": "smoke",
        "recipe_sha256": "0",
        "device": "cpu",
        "parameters_total": 1,
        "parameters_trained": 1,
    }
    run.write(Plan(**plan, chosen=chosen, candidates=[chosen]))
    write(run, [line(step) for step in range(steps)])
    for step in saved:
        put_step(run.checkpoints, step)
    return run


def write(run: RunDir, lines: list[dict[str, float]]) -> None:
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in lines))


def let_go(run: RunDir, host: str = "") -> None:
    """As a process leaves its lock that has ended, however it ended."""
    (run.path / ".lock").write_text(json.dumps({"pid": 1, "host": host or os.uname().nodename, "since": NOW}))


@contextmanager
def held(run: RunDir) -> Iterator[None]:
    """As another process holds its run: the lock is the kernel's, the number in the file is not ours."""
    with locked(run.path):
        let_go(run)
        yield


def test_a_living_process_is_seen_by_its_lock(tmp_path: Path) -> None:
    run = make(tmp_path, 30)
    with held(run):
        found = read_status(run, now=NOW - 60)
    assert (found.state, found.step, found.steps) == ("running", 30, 60)
    assert "process 1 on" in str(found.process)
    assert (found.step_s, found.eta_s) == (2.0, 60.0)
    assert found.last_line_age_s == pytest.approx(11)


def test_a_process_that_writes_nothing_for_long_is_silent(tmp_path: Path) -> None:
    run = make(tmp_path, 30)
    with held(run):
        assert read_status(run, now=NOW + 20).state == "running"
        found = read_status(run, now=NOW + 600)
    assert found.state == "silent"
    assert "11 min" in found.reason


def test_nothing_logged_yet(tmp_path: Path) -> None:
    run = make(tmp_path, 0)
    with held(run):
        found = read_status(run)
    assert (found.state, found.step, found.loss, found.losses) == ("preparing", 0, None, [])
    assert "loss" in found.unknown
    assert status_table(found)


@pytest.mark.parametrize(
    ("steps", "saved", "state"),
    [
        (60, (60,), "finished"),
        (60, (), "finished"),
        (60, (40,), "died"),
        (30, (20, 30), "stopped"),
        (30, (20,), "died"),
        (30, (), "died"),
        (0, (), "died"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, steps: int, saved: tuple[int, ...], state: str) -> None:
    run = make(tmp_path, steps, saved=saved)
    let_go(run)
    found = read_status(run, now=NOW + 3600)
    assert found.state == state
    assert found.saved_step == max(saved, default=None)
    assert found.eta_s is None
    assert "no process" in found.reason or state == "finished"


def test_interrupted_save_is_no_checkpoint(tmp_path: Path) -> None:
    run = make(tmp_path, 30, saved=(10,))
    (run.checkpoints / "30.orbax-checkpoint-tmp-0").mkdir()
    (run.checkpoints / "30").mkdir()
    let_go(run)
    assert (read_status(run).saved_step, read_status(run).state) == (10, "died")


def test_lock_of_another_machine_is_said(tmp_path: Path) -> None:
    run = make(tmp_path, 30)
    let_go(run, host="other-machine")
    assert "other-machine" in read_status(run, now=NOW + 3600).reason


def test_without_a_lock_a_fresh_line_leaves_it_open(tmp_path: Path) -> None:
    run = make(tmp_path, 30)
    assert read_status(run, now=NOW - 60).state == "unknown"
    assert read_status(run, now=NOW + 3600).state == "died"


def test_killed_process_is_told_from_another_shell(tmp_path: Path) -> None:
    run = make(tmp_path, 30, saved=(20,))
    code = "import sys, time\nfrom pathlib import Path\nfrom harness.run.lock import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    alive = read_status(run, now=NOW - 60)
    process.kill()
    process.wait()
    dead = read_status(run, now=NOW - 60)
    assert (alive.state, dead.state) == ("running", "died")
    assert "step 20" in dead.reason


def test_pace_against_expectation_and_loader(tmp_path: Path) -> None:
    run = make(tmp_path, 10, expected=0.5)
    write(run, [line(step, data_s=1.0) for step in range(10)])
    findings = read_status(run).findings
    assert any("4.0 times what the plan expects" in text for text in findings)
    assert any("waiting for data" in text for text in findings)
    calm = make(tmp_path / "calm", 10, expected=2.0)
    assert read_status(calm).findings == []


def test_first_step_which_compiles_is_not_in_the_pace(tmp_path: Path) -> None:
    run = make(tmp_path, 2)
    write(run, [line(0, step_s=500.0), line(1, step_s=2.0)])
    assert read_status(run).step_s == 2.0


def test_memory_of_the_run(tmp_path: Path) -> None:
    run = make(tmp_path, 10)
    assert (read_status(run).predicted_bytes, read_status(run).peak_bytes) == (10**9, None)
    body: dict[str, Any] = {
        "device": "cpu",
        "devices": 1,
        "breakdown": {},
        "source": "compiled",
        "compiled": {},
        "step": 1,
        "host_peak_bytes": 7,
    }
    run.write(Memory(**body, predicted_bytes=5, peak_bytes=6, limit_bytes=8))
    found = read_status(run)
    assert (found.predicted_bytes, found.peak_bytes, found.limit_bytes) == (5, 6, 8)


def test_torn_and_foreign_lines_are_counted(tmp_path: Path) -> None:
    run = make(tmp_path, 10)
    with run.metrics.open("ab") as file:
        file.write(b"\xff\x00junk\n{}\n" + json.dumps(line(3, loss=9.0)).encode() + b'\n{"step": 10, "lo')
    found = read_status(run)
    assert found.step == 10
    assert found.losses[3] == 9.0
    assert any("3 lines" in text for text in found.findings)


def test_losses_that_are_not_finite(tmp_path: Path) -> None:
    run = make(tmp_path, 3)
    with run.metrics.open("a") as file:
        file.write(json.dumps(line(3)).replace('"loss": 0.5', '"loss": NaN') + "\n")
    found = read_status(run)
    assert (found.loss, found.losses[-1]) == (None, None)
    assert any("not finite" in text for text in found.findings)
    assert Status.model_validate_json(found.model_dump_json()) == found
    assert status_table(found)


def test_long_log_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, 500, of=1000)
    monkeypatch.setattr(module, "TAIL_BYTES", 20_000)
    found = read_status(run)
    assert found.step == 500
    assert found.losses_since_step is not None
    assert 300 < found.losses_since_step < 500
    assert len(found.losses) <= module.POINTS
    assert found.findings == []


def test_resume_with_more_steps_counts(tmp_path: Path) -> None:
    run = make(tmp_path, 60, saved=(60,), of=60)
    (run.path / "recipe.yaml").write_text(to_yaml(load_recipe("smoke", ["train.steps=90"])))
    let_go(run)
    assert (read_status(run).steps, read_status(run).state) == (90, "stopped")


def test_damaged_files_are_named_and_the_rest_is_told(tmp_path: Path) -> None:
    run = make(tmp_path, 10)
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe")
    (tmp_path / "memory.json").write_text("[" * 50_000)
    (tmp_path / "recipe.yaml").write_text("name: [")
    found = read_status(run)
    assert (found.step, found.steps) == (10, None)
    assert {"plan.json", "memory.json", "recipe.yaml"} <= {text.split()[0] for text in found.findings}
    assert status_table(found)


@pytest.mark.parametrize("content", [None, (), ("notes.txt",)])
def test_what_is_no_run(tmp_path: Path, content: tuple[str, ...] | None) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.mkdir()
        for name in content:
            (path / name).touch()
    with pytest.raises(HarnessError) as caught:
        read_status(RunDir(path))
    assert caught.value.code == "run-missing"


def test_newest_run_is_the_one_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path))
    with pytest.raises(HarnessError):
        newest_run()
    for number, name in enumerate(("b", "a", "c")):
        make(tmp_path / name, 1)
        for place in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(place, (time.time() - 1000 + number,) * 2)
    os.utime(tmp_path / "a" / "metrics.jsonl", (time.time(),) * 2)
    assert newest_run().path.name == "a"


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([1, None, float("nan"), 2]) == "▁××█"
    assert sparkline([]) == ""
    assert sparkline([1e308, -1e308, 0.0, None]) == "█▁▅×"
    assert sparkline([1.7976931348623157e308, -1.7976931348623157e308]) == "█▁"
    assert sparkline([5e-324, 0.0]) == "█▁"


def test_the_verb(tmp_path: Path) -> None:
    run = make(tmp_path, 30, saved=(20,))
    let_go(run)
    command = [sys.executable, "-m", "harness.cli", "status", str(run.path)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert Status.model_validate_json(done.stdout).state == "died"
    watched = subprocess.run(
        [*command, "--watch", "0.2"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert watched.returncode == 1
    assert "died" in watched.stdout


def test_a_watched_run_is_a_line_of_json_a_look_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_status(make(tmp_path, 30, saved=(20,)))
    looks = [found.model_copy(update={"state": state}) for state in ("running", "silent", "finished")]
    monkeypatch.setattr("harness.run.status.read_status", lambda _: looks.pop(0))
    with pytest.raises(typer.Exit) as ended:
        status(tmp_path, watch=0.0, as_json=True)
    said = [Status.model_validate_json(line).state for line in capsys.readouterr().out.splitlines()]
    assert (said, ended.value.exit_code) == (["running", "silent", "finished"], 0)


def test_the_newest_run_is_no_link_and_may_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "later").write_text("")
    assert newest_run().path.name == "mine"


@pytest.mark.parametrize(("logged", "state"), [(0, "finished"), (30, "finished"), (60, "finished")])
def test_a_log_that_lost_lines_does_not_take_back_what_is_saved(
    logged: int, state: str, tmp_path: Path
) -> None:
    run = make(tmp_path, logged, saved=(60,))
    let_go(run)
    found = read_status(run)
    assert (found.state, found.step, found.saved_step) == (state, 60, 60)
    assert any("lines of metrics.jsonl are lost" in each for each in found.findings) == (logged < 60)
    assert ("are saved" in found.reason) == (logged < 60)
