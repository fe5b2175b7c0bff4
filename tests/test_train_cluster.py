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
from typing import Any

import numpy as np
import pytest

from harness.artifacts import Manifest, Memory
from harness.checkpoint.digests import read_digests
from harness.checkpoint.inspect import inspect
from harness.run.directory import RECIPE, RunDir
from tests.support.members import Members, ended, prepared, recipe_of, stored, trainers
from tests.support.real_runs import learned, metrics

STEPS = 8
HELD_OUT = "train.holdout={episodes: 1, frames: 4}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted. It measures held-out episodes."""
    root = tmp_path_factory.mktemp("cluster")
    run, cache = prepared(root / "whole", recipe_of(STEPS, HELD_OUT)), root / "programs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        ended(trainers(run, run))
    # A CPU's program from there has lost the order of its collectives.
    assert not cache.exists() or not list(cache.iterdir())
    return run


def test_process_0_alone_writes_the_files_of_the_run(whole: Path) -> None:
    assert [line["step"] for line in metrics(whole)] == list(range(STEPS))
    assert [line["step"] for line in held_out(whole)] == [4, STEPS]
    memory = RunDir(whole).read(Memory)
    assert memory is not None
    assert (memory.devices, memory.step) == (4, STEPS)
    report = inspect(whole / "checkpoints", deep=True)
    assert [(step.step, step.complete) for step in report.steps] == [(STEPS, True)]
    assert not [finding for finding in report.findings if "sha256" in finding]
    assert [path.name for path in whole.glob(".shared-*")] == []


def test_stopped_killed_and_resumed_it_is_bitwise_the_run_that_was_not(whole: Path, tmp_path: Path) -> None:
    """SIGTERM to one process stops both at the same step, which is saved. Then process 0 is killed."""
    run = prepared(tmp_path / "run", recipe_of(STEPS, HELD_OUT))
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
    assert held_out(run) == held_out(whole)
    assert_equal(stored(run / "checkpoints", STEPS), stored(whole / "checkpoints", STEPS))


def test_one_and_four_processes_restore_what_two_have_saved_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """Saved by two; then by one; then by four, whose shards are each on another; then by one."""
    sources, saved = whole / "checkpoints", stored(whole / "checkpoints", STEPS)
    for number, (processes, fsdp) in enumerate(((1, 2), (4, 4), (1, 2))):
        target = tmp_path / str(number) / "checkpoints"
        command = ["tests.support.member_restore", str(whole / RECIPE), str(sources), str(STEPS), str(fsdp)]
        ended(Members([[*command, str(target)]] * processes))
        sources = target
        assert_equal(stored(sources, STEPS), saved)
        digests = read_digests(sources / str(STEPS))
        assert digests is not None
        assert bool(digests.tiles) == (processes == 4), "tiles only where no process has the whole leaf"
        assert len(digests.tiles) + len(digests.leaves) == len(saved)
        report = inspect(sources, deep=True)
        assert not [finding for finding in report.findings if "sha256" in finding]


def test_one_process_has_the_same_program_and_bytes_and_measures_the_same(
    whole: Path, tmp_path: Path
) -> None:
    """Of the same parameters the held-out pass of two processes has the line of one, bit for bit."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "held_out.jsonl").unlink()
    command = [
        "tests.support.member_restore",
        str(whole / RECIPE),
        str(whole / "checkpoints"),
        str(STEPS),
        "2",
    ]
    members = ended(Members([[*command, str(tmp_path / "saved"), str(run)]]))
    manifest, memory = RunDir(whole).read(Manifest), RunDir(whole).read(Memory)
    assert manifest is not None
    assert memory is not None
    told = [event["text"] for event in members.said(0) if event["event"] == "say"]
    assert json.dumps([manifest.step_fingerprint, memory.compiled]) in told
    assert held_out(run) == held_out(whole)[-1:]


def held_out(run: Path) -> list[dict[str, Any]]:
    """The lines of the passes, without their times."""
    lines = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line.keys() - {"seconds", "time"}} for line in lines]


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert len(found) > 100
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
