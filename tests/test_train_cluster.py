"""Tests a run of two processes, each with two devices: what one process would have learned, stopped, killed,
resumed and restored.

The processes are real and talk over the loopback device; Gloo moves their arrays.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Manifest, Memory
from harness.checkpoint.digests import read_digests
from harness.checkpoint.inspect import inspect
from harness.run.directory import RunDir
from tests.support.members import Members, ended, prepared, recipe_of, stored, trainers
from tests.support.real_runs import learned, metrics

STEPS = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted."""
    run = prepared(tmp_path_factory.mktemp("cluster") / "whole", recipe_of(STEPS))
    ended(trainers(run, run))
    return run


def test_process_0_alone_writes_the_files_of_the_run(whole: Path) -> None:
    assert [line["step"] for line in metrics(whole)] == list(range(STEPS))
    memory = RunDir(whole).read(Memory)
    assert memory is not None
    assert (memory.devices, memory.step) == (4, STEPS)
    report = inspect(whole / "checkpoints", deep=True)
    assert [(step.step, step.complete) for step in report.steps] == [(STEPS, True)]
    assert not [finding for finding in report.findings if "sha256" in finding]
    assert [path.name for path in whole.glob(".shared-*")] == []


def test_stopped_killed_and_resumed_it_is_bitwise_the_run_that_was_not(whole: Path, tmp_path: Path) -> None:
    """SIGTERM to one process stops both at the same step, which is saved. Then process 0 is killed."""
    run = prepared(tmp_path / "run", recipe_of(STEPS))
    members = trainers(run, run)
    members.until(lambda: len(metrics(run)) >= 2)
    members.processes[1].send_signal(signal.SIGTERM)
    ended(members)
    ends = [members.said(number)[-1] for number in (0, 1)]
    stopped = ends[0]["step"]
    assert ends == [{"event": "end", "step": stopped, "finished": False}] * 2
    assert [path.name for path in (run / "checkpoints").iterdir()] == [str(stopped)]
    members = trainers(run, run)
    members.until(lambda: len(metrics(run)) > stopped)
    members.processes[0].kill()
    before = time.monotonic()
    assert members.wait()[0] == -signal.SIGKILL
    assert time.monotonic() - before < 60
    lost = members.ending(1)
    assert (lost.code, lost.what.partition(" (")[0]) == ("peer-lost", "process 0")
    assert "--resume" in lost.fix
    ended(trainers(run, run))
    assert learned(run) == learned(whole)
    assert_equal(stored(run / "checkpoints", STEPS), stored(whole / "checkpoints", STEPS))


def test_one_two_and_four_processes_restore_each_others_saves_bit_for_bit(
    whole: Path, tmp_path: Path
) -> None:
    """Saved by two; restored and saved by one, then by four whose shards are each on another, then by two."""
    sources, saved = whole / "checkpoints", stored(whole / "checkpoints", STEPS)
    for processes, fsdp, target in ((1, 2, "one"), (4, 4, "four"), (2, 2, "two")):
        command = ["tests.support.member_restore", str(sources), str(STEPS), str(fsdp)]
        command += [str(tmp_path / target / "checkpoints"), *(["lower"] if processes == 1 else [])]
        members = ended(Members([command] * processes))
        sources = tmp_path / target / "checkpoints"
        assert_equal(stored(sources, STEPS), saved)
        digests = read_digests(sources / str(STEPS))
        assert digests is not None
        assert bool(digests.tiles) == (processes == 4), "tiles only where no process has the whole leaf"
        assert len(digests.tiles) + len(digests.leaves) > 150
        report = inspect(sources, deep=True)
        assert not [finding for finding in report.findings if "sha256" in finding]
        if processes == 1:
            manifest = RunDir(whole).read(Manifest)
            assert manifest is not None
            assert f"lowered {manifest.step_fingerprint}" in [event.get("text") for event in members.said(0)]


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert len(found) > 150
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_directory_that_is_not_shared_is_refused_at_once(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one" / "run", recipe_of(2))
    other = tmp_path / "other" / "run"
    shutil.copytree(one, other)
    members = trainers(one, other)
    assert members.wait() == [2, 2]
    for number in (0, 1):
        error = members.ending(number, "start")
        assert error.code == "directory-not-shared"
        assert error.got is not None
        assert error.got.startswith("process 1 (")
        assert error.got.endswith(f"at {other}")
        assert "compile" not in json.dumps(members.said(number))
    assert not list(one.glob(".shared-*"))
    assert not list(other.glob(".shared-*"))


def waiting(processes: int, *more: str, limit_s: int = 120, only: int | None = None) -> Members:
    command = ["tests.support.member_waits", str(limit_s)]
    commands = [command + (list(more) if number == only else []) for number in range(processes)]
    return Members(commands, devices=processes)


def test_of_three_processes_the_one_that_dies_is_named_within_a_minute() -> None:
    """Nothing fails in the others, which wait for it. JAX ends them when its heartbeats stop."""
    members = waiting(3)
    members.until(lambda: all("joined" in json.dumps(members.said(number)) for number in range(3)))
    members.processes[2].kill()
    before = time.monotonic()
    members.wait()
    assert time.monotonic() - before < 60
    for number in (0, 1):
        assert members.ending(number).code == "peer-lost"
        assert members.ending(number).what.startswith("process 2 (")


def test_a_process_that_fails_tells_the_others_why() -> None:
    members = waiting(2, "fails", only=1)
    members.wait()
    error = members.ending(0)
    assert (error.code, error.fix) == ("peer-lost", "free space")
    assert "process 1 (" in error.what
    assert "the disk is full" in error.what


def test_a_process_whose_peers_do_not_come_ends_and_says_so() -> None:
    members = Members([["tests.support.member_waits", "3"]], of=2)
    before = time.monotonic()
    assert members.wait() == [2]
    assert time.monotonic() - before < 60
    assert members.ending(0, "start").code == "peers-missing"
    assert "process 0 of 2" in members.said(0)[0]["text"]
