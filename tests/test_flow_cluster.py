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
from harness.recipe.load import to_yaml
from harness.run.directory import RunDir
from harness.verify.fields import compare_fields, first_difference
from tests.support.members import environment_of, free_port, recipe_of
from tests.support.real_runs import metrics
from tests.support.verifying import found_as


class Processes:
    """`harness train` of a small recipe with the options of each, as processes of one run."""

    def __init__(self, root: Path, *options: list[str], of: int = 2) -> None:
        port, recipe = free_port(), root / "small.yaml"
        recipe.write_text(to_yaml(recipe_of(2)))
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "harness.cli", "train", f"--recipe={recipe}", "--device=cpu", *own],
                env=environment_of(number, of, port, devices=of) | {"HARNESS_CACHE": str(root / "cache")},
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
    options = [f"--run={run.path}"]
    processes = Processes(tmp_path, options, options)
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
    assert list(manifest.hosts) == ["0", "1"]
    # A run of one process with as many devices has another layout, which verify names first.
    alone = levers.model_copy(update={"hosts": 1}).model_dump(mode="json")
    rows = compare_fields(manifest, found_as(manifest, plan=alone, hosts=None))
    assert first_difference(rows) == "plan.hosts"
    assert not [row for row in rows if row.field.startswith("hosts") and row.matters]
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
    processes = Processes(tmp_path, *[[f"--run={run}"]] * 2)
    assert processes.ended() == [2, 2], processes.said
    for said in processes.said:
        assert "error [run-exists]" in said


def test_the_doctor_of_several_processes_looks_at_all_machines_and_ends_all_alike(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "harness.cli", "doctor", "--recipe=smoke", "--device=cpu", "--json"]
    processes = [
        subprocess.Popen(
            command,
            env=environment_of(number, 2, port, devices=2 + 2 * number)
            | {"HARNESS_RUNS": str(tmp_path), "HARNESS_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=460) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[1][0] == ""
    found = Diagnosis.model_validate_json(said[0][0])
    assert {"software of hosts", "data of hosts", "clocks of hosts"} <= set(found.passed)
    # The second process makes two devices, of which one is planned.
    idle = [finding for finding in found.findings if finding.check == "devices of hosts"]
    assert [(one.severity, "(process 1): 2 CPU devices" in one.got) for one in idle] == [("warning", True)]


def test_a_batch_that_the_processes_cannot_share_is_refused_in_all(tmp_path: Path) -> None:
    options = [f"--run={tmp_path / 'run'}", "--set=train.global_batch=5"]
    processes = Processes(tmp_path, options, options)
    assert processes.ended() == [2, 2], processes.said
    for said in processes.said:
        assert "error [hosts-cannot-share]" in said


def test_directories_that_are_not_shared_are_refused_before_anything_is_planned(tmp_path: Path) -> None:
    before = time.monotonic()
    processes = Processes(tmp_path, *([f"--run={tmp_path / name / 'run'}"] for name in ("a", "b")))
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
        [sys.executable, "-m", "harness.cli", "train", "--recipe=smoke", f"--run={tmp_path / 'run'}"],
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
    processes = Processes(tmp_path, options, options)
    assert processes.ended() == [2, 2], processes.said
    for said in processes.said:
        assert "error [upstream-cannot]" in said
