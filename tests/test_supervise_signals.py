"""Tests which signals are a request to stop, and that one request stays one."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
from pathlib import Path

import pytest

from harness.supervise import signals
from harness.supervise.run import Outcome
from harness.supervise.signals import stop_requests
from tests.support.scripted import run, wait_for


def test_a_request_that_comes_twice_at_once_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As timeout(1) signals its command and then the command's group."""
    # However slow this machine is.
    monkeypatch.setattr(signals, "_SAME_S", 60.0)
    ready, asked = tmp_path / "ready", tmp_path / "asked"

    def both() -> None:
        for there in (ready, asked):
            wait_for(there)
            os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "again").touch()

    script = f"""
    def stop(*_):
        Path({str(asked)!r}).touch()
        while not Path({str(tmp_path / "again")!r}).exists(): time.sleep(0.05)
        time.sleep(0.5)
        tell("end", step=7, finished=False); sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    Path({str(ready)!r}).touch()
    time.sleep(60)
    """
    threading.Thread(target=both).start()
    assert run(tmp_path, script)[0] == Outcome(7, False, 0)


def test_a_later_request_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_S", 0.0)
    heard: list[signal.Signals] = []
    with stop_requests(heard.append):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM, signal.SIGTERM]


def test_the_end_of_the_terminal_is_a_request_unless_it_is_ignored() -> None:
    heard: list[signal.Signals] = []
    before = signal.getsignal(signal.SIGHUP)
    with stop_requests(heard.append):
        signal.raise_signal(signal.SIGHUP)
    assert heard == [signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests(heard.append):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGHUP]


def test_a_run_whose_terminal_goes_away_is_saved(tmp_path: Path) -> None:
    """The supervisor leads a session on a terminal, as in a login that is cut off."""
    script = f"""
    def stop(*_):
        print("saving", file=sys.stderr, flush=True)
        time.sleep(0.5)
        Path({str(tmp_path / "saved")!r}).touch()
        tell("say", text="saved"); tell("end", step=7, finished=False); sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    Path({str(tmp_path / "ready")!r}).touch()
    time.sleep(60)
    """
    child, terminal = pty.fork()
    if not child:
        code = "from tests.support.scripted import run; from pathlib import Path; import sys\n"
        code += f"run(Path({str(tmp_path)!r}), {script!r}); print('over'); sys.exit(5)"
        os.execv(sys.executable, [sys.executable, "-c", code])
    wait_for(tmp_path / "ready")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert (tmp_path / "saved").exists()
