"""Tests wandb beside training: it never blocks or ends the training, and reports what it could not do."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.artifacts import Metrics
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir
from harness.train import wandb, wandb_log
from harness.train.metrics import MetricsFile
from harness.train.records import Records
from harness.train.wandb import Wandb
from tests.support.step_writer import put_step

# A call must come back at once; this is far above what it takes and far below any of wandb's own waits.
AT_ONCE_S = 2.0


def line(step: int) -> Metrics:
    return Metrics(
        step=step,
        loss=1.0,
        grad_norm=1.0,
        param_norm=1.0,
        learning_rate=1.0,
        step_s=1.0,
        data_s=0.0,
        time=1.0,
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "smoke-001").mkdir()
    return RunDir(tmp_path / "smoke-001")


def begin(run: RunDir, said: list[str], start_step: int = 0) -> Wandb:
    before = time.monotonic()
    sink = Wandb(run, load_recipe("smoke"), {"a": 1}, start_step=start_step, warn=said.append)
    sink.write([line(step) for step in range(start_step, start_step + 5)])
    assert time.monotonic() - before < AT_ONCE_S
    return sink


@pytest.fixture
def blackhole() -> Iterator[str]:
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=take, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


def online(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def offline_files(run: RunDir) -> list[Path]:
    return sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))


def test_offline_run_is_resumed_under_its_id(
    run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = begin(run, said)
    known = (run.path / wandb.WANDB_ID).read_text().strip()
    sink.close()
    begin(run, said, start_step=5).close()
    assert said == []
    assert {file.stem for file in offline_files(run)} == {f"run-{known}"}
    assert (run.path / wandb.WANDB_ID).read_text().strip() == known


def logged_steps(run: RunDir) -> list[list[int]]:
    """The steps of which each fragment on disk holds values, in the order in which they are synced."""
    known = (run.path / wandb.WANDB_ID).read_text().strip()
    return [
        [
            record.history.step.num
            for record in wandb_log.records(file)
            if record.WhichOneof("record_type") == "history"
        ]
        for file in wandb_log.fragments(run.path, known)
    ]


@pytest.mark.parametrize(("whole", "second"), [(True, []), (False, [2, 3, 4])], ids=["written", "lost"])
def test_a_killed_offline_run_goes_on_without_gap_or_duplicate(
    whole: bool, second: list[int], run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 0 to 4, of which a kill leaves all or the first few in wandb's log; then on from a checkpoint of
    step 3, to step 9.
    """
    monkeypatch.setenv("WANDB_MODE", "offline")
    begin(run, said).close()
    assert logged_steps(run) == [[0, 1, 2, 3, 4]]
    if not whole:
        (file,) = offline_files(run)
        cut = file.read_bytes()
        at = next(at for at in range(len(cut)) if _last_after(file, cut[:at]) == 1)
        file.write_bytes(cut[: at + 3])
    run.metrics.write_text("".join(line(step).model_dump_json() + "\n" for step in range(3)))
    sink = begin(run, said, start_step=3)
    sink.write([line(8), line(9)])
    sink.close()
    first, then = logged_steps(run)
    assert first + then == list(range(10))
    assert then[: len(second)] == second


def _last_after(file: Path, content: bytes) -> int:
    file.write_bytes(content)
    steps = [
        record.history.step.num
        for record in wandb_log.records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    return max(steps, default=-1)


def test_a_run_has_one_id_also_when_it_was_killed_before_its_first_checkpoint(run: RunDir) -> None:
    assert wandb._run_id(run) == wandb._run_id(run)


def test_a_full_disk_is_named_when_a_line_cannot_be_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this kernel has no /dev/full")
    file = MetricsFile(tmp_path / "metrics.jsonl", start_step=0)
    file.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        file._file = full
        with pytest.raises(HarnessError) as caught:
            file.write([line(0)])
    assert caught.value.code == "disk-full"


def test_without_a_key_it_is_offline_and_never_asks(
    run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    sink = begin(run, said)
    sink.checkpoint(5)
    put_step(run.checkpoints, 5)
    sink.close()
    assert said == []
    (file,) = offline_files(run)
    logged = file.read_bytes()
    assert b"grad_norm" in logged
    assert b"checkpoint_step" in logged
    assert str(run.checkpoints / "5").encode() in logged


def test_disabled_starts_nothing(run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    begin(run, said).close()
    assert said == []
    assert list(run.path.iterdir()) == []


def test_dead_server(run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    online(monkeypatch, f"http://127.0.0.1:{port}")
    monkeypatch.setattr(wandb, "CLOSE_S", 2.0)
    sink = begin(run, said)
    before = time.monotonic()
    sink.close()
    assert time.monotonic() - before < 2 * AT_ONCE_S + 2
    assert any("wandb" in text and "sync" in text for text in said)


def test_server_that_never_answers(
    run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch, blackhole: str
) -> None:
    online(monkeypatch, blackhole)
    monkeypatch.setattr(wandb, "CLOSE_S", 1.0)
    sink = begin(run, said)
    before = time.monotonic()
    sink.close()
    assert time.monotonic() - before < 1.0 + AT_ONCE_S + 2
    assert any("did not end" in text for text in said)


def test_process_that_dies_at_once(run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    sink = begin(run, said)
    sink.close()
    assert any("wandb's process ended" in text for text in said)


def test_program_that_is_not_there(run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    begin(run, said).close()
    assert [text for text in said if "wandb is off" in text]


def test_process_that_takes_nothing_is_left(
    run: RunDir, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # It reads nothing and does not end: the pipe fills, the queue fills, and training goes on.
    stuck = tmp_path / "stuck"
    stuck.write_text("#!/bin/sh\nexec sleep 100\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stuck))
    monkeypatch.setattr(wandb, "MOST_WAITING", 50)
    monkeypatch.setattr(wandb, "CLOSE_S", 0.5)
    sink = Wandb(run, load_recipe("smoke"), {}, start_step=0, warn=said.append)
    before = time.monotonic()
    sink.write([line(step) for step in range(5000)])
    sink.close()
    assert time.monotonic() - before < 2 * AT_ONCE_S
    assert any("too slow" in text for text in said)
    assert any("did not end" in text for text in said)


def test_directory_that_cannot_be_written(said: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    begin(RunDir(tmp_path / "file"), said).close()
    assert any("wandb is off" in text for text in said)


def test_metrics_file_drops_what_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, start_step=0)
    first.write([line(step) for step in range(5)])
    first.close()
    whole = path.read_bytes()
    newer = json.dumps(json.loads(whole.splitlines()[0]) | {"of_a_newer_harness": 1}).encode() + b"\n"
    path.write_bytes(codecs.BOM_UTF8 + whole + newer + b'\xff{"step": 5, "lo')
    second = MetricsFile(path, start_step=3)
    second.write([line(3)])
    second.close()
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [0, 1, 2, 3]
    assert (tmp_path / "metrics.jsonl.unread").read_bytes() == newer
    assert (second.repeated, second.unread) == (2, 1)


def test_a_run_that_is_moved_while_it_trains_goes_on_in_one_place(tmp_path: Path) -> None:
    """Its next save makes its old directory anew; what brings the two together is said."""
    old, new = RunDir(tmp_path / "a run"), tmp_path / "b"
    old.path.mkdir()
    records = object.__new__(Records)
    records._run, records.metrics = old, MetricsFile(old.metrics, start_step=0)
    records.wandb = SimpleNamespace(checkpoint=lambda _: None)  # type: ignore[assignment]
    records.saved(3)
    old.path.rename(new)
    (old.checkpoints / "3").mkdir(parents=True)
    with pytest.raises(HarnessError) as caught:
        records.saved(3)
    assert caught.value.code == "run-moved"
    subprocess.run(str(caught.value.fix).partition(" && harness")[0], shell=True, check=True)
    assert (new / "checkpoints/3").is_dir()
    assert str(caught.value.fix).endswith(f"harness train --resume --run {new}")
    shutil.rmtree(new)
    with pytest.raises(HarnessError, match="RUN is where"):
        records.saved(3)
    records.metrics.close()


def test_a_resume_keeps_more_lines_than_a_page_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.artifacts import metrics_lines

    path, rows = tmp_path / "metrics.jsonl", [line(step) for step in range(7)]
    file = MetricsFile(path, start_step=0)
    file.write(rows)
    file.close()
    before = path.read_text()
    monkeypatch.setattr(metrics_lines.read_lines, "__kwdefaults__", {"most": 3})
    assert len(list(metrics_lines.read_lines(path, tmp_path))) == 3
    MetricsFile(path, start_step=7).close()
    assert path.read_text() == before


def test_a_file_that_could_not_be_kept_whole_ends_a_resume_before_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    os.truncate(path, 2**30 + 1)
    with pytest.raises(HarnessError) as caught:
        MetricsFile(path, start_step=1)
    assert caught.value.code == "file-too-large"
    assert path.stat().st_size == 2**30 + 1
