"""Tests the lock of a run directory, and what the doctor says of it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.run.lock import holder, locked
from tests.support.situations import (
    found,
    situation,
)


def in_child(code: str, directory: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        f"import sys, time; from pathlib import Path; from harness.run.lock import locked\n{code}",
        str(directory),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


HOLD = "with locked(Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(60)"


def test_a_second_run_on_one_directory_is_refused_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    child = in_child(HOLD, tmp_path)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(HarnessError) as caught, locked(tmp_path):
            pytest.fail("the directory is held by another process")
        assert caught.value.code == "run-busy"
        assert str(child.pid) in str(caught.value.got)
        assert str(child.pid) in str(holder(tmp_path))
        assert found(situation(tmp_path)) == {"run directory": "error"}
    finally:
        child.kill()
        child.wait()
    assert holder(tmp_path) is None
    with locked(tmp_path):
        pass


def test_who_only_looks_keeps_no_run_from_starting(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    # As `status --watch` holds it, for longer.
    looking = (tmp_path / ".lock").open("rb")
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.1, looking.close).start()
    with locked(tmp_path):
        assert looking.closed


def test_one_process_may_lock_again_what_it_has_left(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run"):
            # Its own lock is no finding: the doctor is asked while the run holds its directory.
            assert holder(tmp_path / "run") is None
