"""Tests a run of two processes, each with two devices: what one process would have learned, stopped, killed,
resumed and restored.

The processes are real and talk over the loopback device; Gloo moves their arrays.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import Manifest, Memory
from harness.checkpoint.digests import read_digests
from harness.checkpoint.inspect import inspect
from harness.errors import HarnessError
from harness.recipe.load import to_yaml
from harness.run.cluster import Member
from harness.run.directory import RECIPE, RunDir, write_atomic
from harness.supervise.channel import Channel
from harness.train.cluster import join
from harness.train.worker import _maybe_lost
from tests.support.members import Members, ended, prepared, recipe_of, stored, trainers
from tests.support.real_runs import learned, metrics

STEPS = 12
HELD_OUT = "train.holdout={episodes: 1, frames: 4}"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, of which one is sent SIGTERM. Until then nothing interrupted it."""
    root = tmp_path_factory.mktemp("cluster")
    run, cache = prepared(root / "stopped", recipe_of(STEPS, HELD_OUT)), root / "programs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        members = trainers(run, run)
    members.until(lambda: len(metrics(run)) > 4)
    members.processes[1].send_signal(signal.SIGTERM)
    ended(members)
    step = len(metrics(run))
    assert [members.said(number)[-1] for number in (0, 1)] == [
        {"event": "end", "step": step, "finished": step == STEPS}
    ] * 2
    # A CPU's program from there has lost the order of its collectives.
    assert not cache.exists() or not list(cache.iterdir())
    return run


@pytest.fixture(scope="module")
def resumed(stopped: Path) -> Path:
    """The same run, whose process 0 was killed; resumed from its save, until the step of the other's stop."""
    run = prepared(stopped.parent / "resumed", recipe_of(STEPS, HELD_OUT))
    members = trainers(run, run)
    members.until(lambda: len(metrics(run)) > 4)
    members.processes[0].kill()
    before = time.monotonic()
    assert members.wait()[0] == -signal.SIGKILL
    assert time.monotonic() - before < 60
    lost = members.ending(1)
    assert (lost.code, lost.what.partition(" (")[0]) == ("peer-lost", "process 0")
    assert "--resume" in lost.fix
    write_atomic(run / RECIPE, to_yaml(recipe_of(last(stopped), HELD_OUT)))
    ended(trainers(run, run))
    return run


def last(run: Path) -> int:
    """The step after which a run has saved and ended."""
    return len(metrics(run))


def test_sigterm_to_one_process_saves_one_step(stopped: Path) -> None:
    assert 4 < last(stopped) < STEPS
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [str(last(stopped))]


def test_killed_and_resumed_it_is_bitwise_the_run_that_was_not(stopped: Path, resumed: Path) -> None:
    assert learned(resumed) == learned(stopped)
    assert_equal(
        stored(resumed / "checkpoints", last(resumed)), stored(stopped / "checkpoints", last(stopped))
    )
    lines = held_out(stopped)
    assert lines
    assert held_out(resumed)[: len(lines)] == lines


def test_process_0_alone_writes_the_files_of_the_run(resumed: Path) -> None:
    steps = last(resumed)
    assert [line["step"] for line in metrics(resumed)] == list(range(steps))
    assert [line["step"] for line in held_out(resumed)] == [*range(4, steps, 4), steps]
    memory = RunDir(resumed).read(Memory)
    assert memory is not None
    assert (memory.devices, memory.step) == (4, steps)
    report = inspect(resumed / "checkpoints", deep=True)
    assert [(step.step, step.complete) for step in report.steps] == [(steps, True)]
    assert not [finding for finding in report.findings if "sha256" in finding]
    assert [path.name for path in resumed.glob(".shared-*")] == []


def test_one_and_four_processes_restore_what_two_have_saved_bit_for_bit(
    resumed: Path, tmp_path: Path
) -> None:
    """Saved by two; then by one; then by four, whose shards are each on another; then by one.

    One process has the same program and the same bytes a device. Of the same parameters its held-out pass has
    the line of two, bit for bit.
    """
    steps, sources = str(last(resumed)), resumed / "checkpoints"
    saved, run = stored(sources, int(steps)), tmp_path / "run"
    shutil.copytree(resumed, run)
    (run / "held_out.jsonl").unlink()
    for number, (processes, fsdp, more) in enumerate([(1, 2, [str(run)]), (4, 4, []), (1, 2, [])]):
        target = tmp_path / str(number) / "checkpoints"
        command = ["tests.support.member_restore", str(resumed / RECIPE), str(sources), steps, str(fsdp)]
        members = ended(Members([[*command, str(target), *more]] * processes))
        sources = target
        streamed = target.with_name(f"{target.name}-streamed")
        for directory in (sources, streamed):
            assert_equal(stored(directory, int(steps)), saved)
        assert read_digests(streamed / steps) == read_digests(sources / steps)
        assert not [one for one in inspect(streamed, deep=True).findings if "sha256" in one]
        digests = read_digests(sources / steps)
        assert digests is not None
        assert bool(digests.tiles) == (processes == 4), "tiles only where no process has the whole leaf"
        assert len(digests.tiles) + len(digests.leaves) == len(saved)
        report = inspect(sources, deep=True)
        assert not [finding for finding in report.findings if "sha256" in finding]
        if more:
            manifest, memory = RunDir(resumed).read(Manifest), RunDir(resumed).read(Memory)
            assert manifest is not None
            assert memory is not None
            told = [event["text"] for event in members.said(0) if event["event"] == "say"]
            assert json.dumps([manifest.step_fingerprint, memory.compiled]) in told
            assert held_out(run) == held_out(resumed)[-1:]


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
    members.until(lambda: all(members.heard(number, "peers") for number in (0, 1)))
    before = time.monotonic()
    assert members.wait() == [2, 2]
    assert time.monotonic() - before < 10
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
    members.until(lambda: all(members.heard(number, "joined") for number in range(3)))
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


def test_a_host_that_does_not_know_its_own_name_is_told_so_before_jax_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with pytest.raises(HarnessError) as caught:
        join(Member("127.0.0.1:9", 2, 1, None, "hand"), Channel(io.StringIO()))
    assert caught.value.code == "host-name-unknown"
    assert socket.gethostname() in caught.value.what


def test_a_save_that_failed_may_be_the_loss_of_a_peer_and_another_refusal_is_none() -> None:
    failed, gone = HarnessError("save-failed", "not saved", fix="again"), RuntimeError("Timed out: barrier")
    failed.__cause__ = gone
    assert _maybe_lost(failed) is gone
    assert _maybe_lost(gone) is gone
    assert _maybe_lost(HarnessError("disk-full", "full", fix="free space")) is None
