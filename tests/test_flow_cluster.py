"""Tests `harness train` started in several processes: one run, from the plan to the report.

The processes are real. Process 0 prepares the run, the others wait for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.artifacts import Checkpoint, Diagnosis, Hosts, Machine, Manifest, Plan
from harness.run.directory import RunDir
from tests.support.members import environment_of, free_port
from tests.support.real_runs import metrics

SMALL = ["--recipe=smoke", "--device=cpu", "--set=model.image_size=28", "--set=train.save_every_steps=2"]


class Processes:
    """`harness train` with the options of each, as processes of one run."""

    def __init__(self, cache: Path, *options: list[str], of: int = 2) -> None:
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "harness.cli", "train", *SMALL, *own],
                env=environment_of(number, of, port, devices=of) | {"HARNESS_CACHE": str(cache)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, own in enumerate(options)
        ]
        self.said: list[str] = []

    def ended(self, seconds: float = 460) -> list[int]:
        """The exit codes. `said` then has what each has written for people."""
        deadline = time.monotonic() + seconds
        try:
            self.said = [
                process.communicate(timeout=max(deadline - time.monotonic(), 0.1))[1]
                for process in self.processes
            ]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes]


def test_two_processes_train_one_run_from_the_plan_to_the_report(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    options = [f"--run={run.path}", "--set=train.steps=2"]
    processes = Processes(tmp_path / "cache", options, options)
    assert processes.ended() == [0, 0], processes.said
    plan, hosts, manifest = run.read(Plan), run.read(Hosts), run.read(Manifest)
    assert hosts is not None
    assert plan is not None
    assert plan.chosen is not None
    assert plan.cluster is not None
    levers = plan.chosen.levers
    assert (levers.hosts, levers.devices, levers.microbatch * levers.accumulation_steps) == (2, 2, 2)
    assert plan.cluster.names == [host.name for host in hosts.hosts]
    assert manifest is not None
    assert manifest.plan.levers == levers
    assert [line["step"] for line in metrics(run.path)] == [0, 1]
    diagnosis = run.read(Diagnosis)
    assert diagnosis is not None
    assert {"software of hosts", "data of hosts", "devices of hosts"} <= set(diagnosis.passed)
    # What is of one process is done by the first alone.
    assert run.read(Checkpoint) is not None
    assert (run.path / "report.html").is_file()
    assert "report: " in processes.said[0]
    assert "report: " not in processes.said[1]
    assert "waiting for process 0, which prepares it" in processes.said[1]
    assert RunDir(run.path).read(Machine) is not None


def test_a_run_that_process_0_cannot_begin_ends_all_with_its_error(tmp_path: Path) -> None:
    """Its directory has been trained already."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    processes = Processes(tmp_path / "cache", *[[f"--run={run}"]] * 2)
    assert processes.ended() == [2, 2], processes.said
    for said in processes.said:
        assert "error [run-exists]" in said


def test_a_batch_that_the_processes_cannot_share_is_refused_in_all(tmp_path: Path) -> None:
    options = [f"--run={tmp_path / 'run'}", "--set=train.global_batch=5"]
    processes = Processes(tmp_path / "cache", options, options)
    assert processes.ended() == [2, 2], processes.said
    for said in processes.said:
        assert "error [hosts-cannot-share]" in said


def test_directories_that_are_not_shared_are_refused_before_anything_is_planned(tmp_path: Path) -> None:
    before = time.monotonic()
    processes = Processes(tmp_path / "cache", *([f"--run={tmp_path / name / 'run'}"] for name in ("a", "b")))
    assert processes.ended() == [2, 2], processes.said
    assert time.monotonic() - before < 60
    for said in processes.said:
        assert "error [directory-not-shared]" in said
        assert str(tmp_path / "b") in said
    assert not list(tmp_path.rglob("plan.json"))


def test_a_process_that_waits_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    """Process 1 alone: there is no process 0 to wait for."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "train", *SMALL, f"--run={tmp_path / 'run'}"],
        env=environment_of(1, 2, port, devices=2),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("waiting for process 0" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 2
    assert "error [stopped]" in process.stderr.read()
    assert not (tmp_path / "run").exists()


def test_upstreams_trainer_is_not_one_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HARNESS_BACKEND", "openpi")
    options = [f"--run={tmp_path / 'run'}"]
    processes = Processes(tmp_path / "cache", options, options)
    assert processes.ended() == [2, 2], processes.said
    for said in processes.said:
        assert "error [upstream-cannot]" in said
