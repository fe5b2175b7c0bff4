"""Tests runs that another person sent: no file leads a verb out of the run, or makes it wait."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import artifacts as a
from harness.errors import HarnessError
from harness.flow.find import find_run
from harness.run.directory import RunDir, write_atomic
from harness.run.job import job_of
from harness.run.lock import holder, locked
from harness.run.status import newest_run, read_status
from harness.train.metrics import MetricsFile
from harness.train.wandb import _run_id
from tests.support.report_run import full_run
from tests.support.run_readers import READERS, TEXTS, outcome, verb

# No reader may wait for a FIFO or read a device without an end: far more than any of them needs.
PATIENCE_S = 60


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = full_run(tmp_path / "runs" / "smoke-001")
    (made.path / "recipe.yaml").unlink()
    return made


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def private(path: Path) -> None:
    secret = path.parent.parent.parent / "private"
    secret.write_text("PRIVATE")
    path.symlink_to(secret)


def itself(path: Path) -> None:
    path.symlink_to(path.name)


def directory(path: Path) -> None:
    path.mkdir()


KINDS = (fifo, unix_socket, endless, private, itself, directory)
OFTEN_READ = ("manifest.json", "metrics.jsonl", ".lock")


@pytest.mark.parametrize(
    ("make", "name"),
    [(fifo, name) for name in (*TEXTS, "camera_views.png", "prediction.json")]
    + [(make, name) for make in KINDS[1:] for name in OFTEN_READ],
)
def test_no_special_file_of_a_run_is_opened(run: RunDir, name: str, make: Callable[[Path], None]) -> None:
    path = run.path / name
    path.unlink(missing_ok=True)
    make(path)
    began = time.monotonic()
    for reader in READERS.values():
        assert outcome(reader, run.path) != "a refusal without a fix"
    assert "PRIVATE" not in (run.path / "report.html").read_text()
    assert time.monotonic() - began < PATIENCE_S
    secret = run.path.parent.parent / "private"
    assert not secret.exists() or secret.read_text() == "PRIVATE"


@pytest.mark.parametrize("make", [fifo, unix_socket, endless, private, directory])
def test_a_lock_that_is_no_file_is_neither_followed_nor_emptied(
    run: RunDir, make: Callable[[Path], None]
) -> None:
    make(run.path / ".lock")
    with pytest.raises(HarnessError) as caught, locked(run.path):
        pass
    assert caught.value.code == "file-not-regular"
    assert caught.value.fix
    if make is private:
        assert (run.path.parent.parent / "private").read_text() == "PRIVATE"
        with pytest.raises(HarnessError, match="leads out"):
            holder(run.path)
        assert any(".lock" in finding for finding in read_status(run).findings)


def test_a_lock_that_leads_nowhere_makes_no_file_there(run: RunDir) -> None:
    target = run.path.parent.parent / "authorized_keys"
    (run.path / ".lock").symlink_to(target)
    with pytest.raises(HarnessError), locked(run.path):
        pass
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"pid": 1, "host": "x", "since": 1e300}',
        '{"since": NaN}',
        "[" * 9999,
        "[]",
        '{"host": 7}',
        "x" * 10**6,
    ],
)
def test_a_lock_may_hold_anything(run: RunDir, text: str) -> None:
    (run.path / ".lock").write_text(text)
    read_status(run)
    with locked(run.path):
        (run.path / ".lock").write_text(text)
        read_status(run)


@pytest.mark.parametrize("name", ["checkpoints", "wandb", "openpi", "openpi/home", "checkpoints/7"])
@pytest.mark.parametrize("target", ["../../other/checkpoints", "/", "../../not there"])
def test_a_run_whose_directories_lie_elsewhere_is_not_gone_on_with(
    run: RunDir, name: str, target: str
) -> None:
    other = run.path.parent.parent / "other" / "checkpoints" / "2"
    other.mkdir(parents=True)
    path = run.path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    for go_on in (run.check_own, lambda: job_of(run)):
        with pytest.raises(HarnessError) as caught:
            go_on()
        assert caught.value.code == "file-leaves-root"
    assert outcome(READERS["status"], run.path).startswith("exit code")
    assert other.is_dir()


@pytest.mark.parametrize("more", [("--resume",), ()])
def test_train_neither_resumes_nor_prunes_a_siblings_checkpoints(run: RunDir, more: tuple[str, ...]) -> None:
    best = run.path.parent / "best" / "checkpoints"
    for step in ("2", "3"):
        (best / step).mkdir(parents=True)
    run.checkpoints.symlink_to("../best/checkpoints")
    assert outcome(verb("train", *more, "--run", "RUN", "--steps", "4"), run.path) == "file-leaves-root"
    assert sorted(path.name for path in best.iterdir()) == ["2", "3"]
    assert not (run.path / ".lock").exists()


def test_a_run_of_ones_own_is_gone_on_with(run: RunDir) -> None:
    """wandb keeps links inside of its directory; a run may be reached by a link; the dataset of openpi's
    trainer lies elsewhere.
    """
    (run.path / "wandb" / "run-1").mkdir(parents=True)
    (run.path / "wandb" / "latest-run").symlink_to("run-1")
    dataset = run.path / "openpi" / "lerobot" / "libero"
    dataset.parent.mkdir(parents=True)
    dataset.symlink_to("/")
    link = run.path.parent / "link"
    link.symlink_to(run.path)
    run.check_own()
    RunDir(link).check_own()


def test_metrics_are_written_into_the_run_alone(run: RunDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    run.metrics.unlink()
    run.metrics.symlink_to(outside)
    with pytest.raises(HarnessError):
        MetricsFile(run.metrics, start_step=0)
    assert outside.read_text() == "mine\n"


def test_what_is_written_below_a_root_does_not_leave_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "run" / "openpi").symlink_to("../else")
    with pytest.raises(HarnessError) as caught:
        write_atomic(tmp_path / "run" / "openpi" / "a" / "job.json", "{}", root=tmp_path / "run")
    assert caught.value.code == "file-leaves-root"
    assert list((tmp_path / "else").iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_what_is_written_has_the_mode_of_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "new" / "file", "x")
        with locked(tmp_path / "run"):
            MetricsFile(tmp_path / "run" / "metrics.jsonl", start_step=0).close()
    finally:
        os.umask(before)
    written = [tmp_path / "new" / "file", tmp_path / "run" / ".lock", tmp_path / "run" / "metrics.jsonl"]
    assert {path.stat().st_mode & 0o777 for path in written} == {mode}


@pytest.mark.parametrize("name", ["..", ".", "/tmp/x", "a/b", "", "a\nb", "-x", "~"])
def test_a_name_of_a_run_is_no_path(name: str) -> None:
    with pytest.raises(HarnessError) as caught:
        find_run(None, name, None, resume=False)
    assert caught.value.code == "run-name-invalid"


@pytest.mark.parametrize("text", ["../../../etc", "/etc", "a b", "*", "\x1b[2J", "x" * 100])
def test_an_id_of_wandb_is_no_path(run: RunDir, text: str) -> None:
    (run.path / "wandb_id.txt").write_text(text)
    with pytest.raises(HarnessError) as caught:
        _run_id(run)
    assert caught.value.code == "wandb-id-invalid"


def test_links_that_lead_nowhere_do_not_hide_the_newest_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_RUNS", str(run.path.parent))
    (run.path / "dangling").symlink_to("nowhere")
    assert newest_run().path == run.path


def test_a_run_is_read_after_it_was_copied(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(run.path, tmp_path / "copy")))
    assert copy.read(a.Manifest) == run.read(a.Manifest)
