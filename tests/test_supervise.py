"""Tests the supervisor with scripted trainers in real processes.

Covered are what it passes on, its message for each end, and when it continues.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.artifacts import GpuProcess, Host, Machine
from harness.probe.cgroup import oom_kills
from harness.supervise import process
from harness.supervise.endings import explain
from harness.supervise.process import Attempt, Limits
from harness.supervise.run import Outcome
from harness.units import GIB
from tests.support.scripted import CARD, WELL, attempts, candidate, plan, refused, run, wait_for


def test_what_the_trainer_says_is_passed_on_in_its_order(tmp_path: Path) -> None:
    outcome, listener = run(
        tmp_path,
        'tell("phase", name="compile"); tell("say", text="a"); step(0); tell("warn", text="b"); tell("end",'
        " step=1, finished=True)",
    )
    assert outcome == Outcome(1, True, 0)
    assert listener.heard == ["phase compile", "say a", "step 0/100", "warn b"]


def test_a_refusal_of_the_trainer_is_raised_as_it_was_and_not_tried_again(tmp_path: Path) -> None:
    script = (
        'save(5); tell("error", code="loss-not-finite", what="w", got="g", need=None, fix="f"); sys.exit(2)'
    )
    error = refused(tmp_path, script)
    assert (error.code, error.what, error.got, error.need, error.fix) == (
        "loss-not-finite",
        "w",
        "g",
        None,
        "f",
    )
    assert attempts(tmp_path) == 1


@pytest.mark.parametrize(
    ("script", "code", "times"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", 2),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed", 2),
        ("save(attempt); os.kill(os.getpid(), signal.SIGABRT)", "crashed", 3),
        ("os.kill(os.getpid(), signal.SIGBUS)", "bus-error", 1),
        ("os.kill(os.getpid(), signal.SIGHUP)", "killed", 1),
        ("save(1); raise ValueError('no such thing')", "trainer-failed", 1),
        ("save(1); tell('host-memory', text='m'); sys.exit(2)", "host-out-of-memory", 1),
        (
            "tell('exhausted', text='RESOURCE_EXHAUSTED: out of memory'); sys.exit(2)",
            "device-out-of-memory",
            1,
        ),
    ],
)
def test_each_end_has_its_name_and_is_tried_again_only_where_that_makes_sense(
    script: str, code: str, times: int, tmp_path: Path
) -> None:
    error = refused(tmp_path, 'tell("phase", name="step"); ' + script)
    assert error.code == code
    assert error.fix
    assert attempts(tmp_path) == times


def test_a_trainer_is_gone_also_where_a_child_of_its_own_holds_its_stdout(tmp_path: Path) -> None:
    script = "child = os.fork()\nif not child: time.sleep(600)\n"
    script += "(run / 'child').write_text(str(child)); os.kill(os.getpid(), signal.SIGSEGV)"
    try:
        assert refused(tmp_path, script, limits=Limits(silent_s=20), restarts=0).code == "crashed"
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_it_goes_on_from_the_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    script = """
    save(attempt * 10)
    if attempt == 1: os.kill(os.getpid(), signal.SIGSEGV)
    tell("end", step=20, finished=True)
    """
    outcome, listener = run(tmp_path, script)
    assert outcome == Outcome(20, True, 1)
    assert any(text.startswith("warn") and "attempt 2 of 3" in text for text in listener.heard)


def test_the_last_words_of_a_failed_trainer_are_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    error = refused(tmp_path, "raise ValueError('the very reason')")
    assert "the very reason" in str(error.got)
    assert "the very reason" in capfd.readouterr().err


def test_device_memory_goes_on_with_the_next_plan_of_the_same_mathematics(tmp_path: Path) -> None:
    script = """
    if attempt == 1: tell("exhausted", text="RESOURCE_EXHAUSTED"); sys.exit(2)
    plan = json.loads((run / "plan.json").read_text())
    tell("say", text=str(plan["chosen"]["device_bytes"])); tell("end", step=1, finished=True)
    """
    others = [
        candidate(device_bytes=18 * GIB, changes={"train.ema_decay": None}),
        candidate(device_bytes=17 * GIB, verdict="rejected"),
        candidate(device_bytes=12 * GIB),
        candidate(device_bytes=16 * GIB),
    ]
    outcome, listener = run(tmp_path, script, plan=plan(*others))
    assert outcome.restarts == 1
    assert f"say {16 * GIB}" in listener.heard
    (tmp_path / "attempts").unlink()
    assert refused(tmp_path, script, plan=plan(others[0])).code == "device-out-of-memory"


def test_ten_times_slower_is_stopped_after_it_has_saved_with_the_likely_cause(tmp_path: Path) -> None:
    script = """
    def stop(*_): save(9); tell("say", text="saved"); sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    for n in range(9): step(n, step_s=5.0, data_s=SHARE)
    time.sleep(60)
    """
    limits = Limits(expected_step_s=0.1)
    error = refused(tmp_path, script.replace("SHARE", "4.9"), limits=limits)
    assert error.code == "ten-times-slower"
    assert "loader" in str(error.got)
    assert (tmp_path / "checkpoints" / "9").is_dir()
    wsl = Machine(gpus=[CARD], host=Host(wsl=True))
    assert "Sysmem" in str(
        refused(tmp_path, script.replace("SHARE", "0.1"), limits=limits, look=lambda: wsl).got
    )
    busy = Machine(
        gpus=[CARD.model_copy(update={"foreign_processes": [GpuProcess(pid=77)]})], host=Host(wsl=False)
    )
    assert "77" in str(
        refused(tmp_path, script.replace("SHARE", "0.1"), limits=limits, look=lambda: busy).got
    )


def test_a_slow_start_alone_is_no_reason_to_stop(tmp_path: Path) -> None:
    script = (
        'step(0, step_s=50.0); step(1, step_s=50.0)\nfor n in range(2, 12): step(n, step_s=0.5)\ntell("end",'
        " step=12, finished=True)"
    )
    assert run(tmp_path, script, limits=Limits(expected_step_s=0.1))[0].finished


def test_a_trainer_that_hangs_is_ended_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.3)
    script = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); tell("phase", name="save"); time.sleep(600)'
    # Long enough for the script's own imports on a busy machine.
    error = refused(tmp_path, script, limits=Limits(silent_s=4), restarts=0)
    assert error.code == "hung"
    assert "save" in error.what


def test_between_steps_a_hang_is_told_by_their_pace(tmp_path: Path) -> None:
    """While a save is under way there is no pace to go by."""
    hangs = "for n in range(8): step(n)\nPHASE\ntime.sleep(600)"
    limits = Limits(silent_s=6, silent_between_steps_s=0.5)
    error = refused(
        tmp_path, 'tell("phase", name="step")\n' + hangs.replace("PHASE", ""), limits=limits, restarts=0
    )
    assert error.code == "hung"
    between = float(str(error.got).split(" for ")[1].split(" ")[0])
    error = refused(
        tmp_path,
        'tell("phase", name="step")\n' + hangs.replace("PHASE", 'tell("phase", name="save")'),
        limits=limits,
        restarts=0,
    )
    assert between < 6 <= float(str(error.got).split(" for ")[1].split(" ")[0])


def test_a_hang_with_a_lost_gpu_is_a_lost_gpu(tmp_path: Path) -> None:
    lost = Machine(gpus=[CARD.model_copy(update={"error": "GPU is lost"})], host=Host())
    assert (
        refused(tmp_path, "time.sleep(600)", limits=Limits(silent_s=0.5), look=lambda: lost).code
        == "gpu-lost"
    )


@pytest.mark.parametrize("phase", ["compile", "init", "load", "restore", "step", "save"])
def test_a_lack_of_device_memory_names_its_phase(phase: str, tmp_path: Path) -> None:
    error = refused(
        tmp_path,
        f'tell("phase", name="{phase}"); tell("exhausted", text="RESOURCE_EXHAUSTED: out of memory");'
        " sys.exit(2)",
    )
    assert error.code == "device-out-of-memory"
    assert f"during {phase}" in error.what


def test_a_lack_of_memory_beside_the_pool_is_not_met_by_a_smaller_plan() -> None:
    said = "RESOURCE_EXHAUSTED: Underlying backend ran out of memory trying to instantiate command buffer"
    ending = explain(Attempt(phase="step", returncode=2, exhausted=said), plan(), WELL)
    assert ending is not None
    assert (ending.error.code, ending.again, ending.smaller) == ("device-out-of-memory", False, False)
    assert "XLA_FLAGS" in str(ending.error.fix)


def test_a_lost_gpu_is_named(tmp_path: Path) -> None:
    lost = Machine(gpus=[CARD.model_copy(update={"error": "GPU is lost"})], host=Host())
    assert refused(tmp_path, "os.kill(os.getpid(), signal.SIGABRT)", look=lambda: lost).code == "gpu-lost"
    assert (
        refused(
            tmp_path, "sys.exit(1)", look=lambda: Machine(gpus=[], gpu_error="no driver", host=Host())
        ).code
        == "gpu-lost"
    )


def test_a_kill_for_lack_of_host_memory_is_told_from_another() -> None:
    killed = Attempt(phase="save", returncode=-signal.SIGKILL, oom_killed=True)
    ending = explain(killed, plan(), WELL)
    assert ending is not None
    assert ending.error.code == "host-out-of-memory"
    assert not ending.again
    # The kernel took a process of the loader, and the trainer failed for it.
    failed = explain(Attempt(phase="step", returncode=1, oom_killed=True), plan(), WELL)
    assert failed is not None
    assert failed.error.code == "host-out-of-memory"
    by_hand = explain(Attempt(phase="save", returncode=-signal.SIGKILL), plan(), WELL)
    assert by_hand is not None
    assert (by_hand.error.code, by_hand.again) == ("killed", True)


@pytest.mark.parametrize(("lines", "expected"), [("low 0\noom_kill 3\n", 3), ("low 0\n", None), (None, None)])
def test_the_kernels_count_of_kills(lines: str | None, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    if lines is not None:
        (group / "memory.events").write_text(lines)
    assert oom_kills(tmp_path) == expected


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("MemoryError('no more')", "host-out-of-memory"),
        ("RuntimeError('RESOURCE_EXHAUSTED: x')", "device-out-of-memory"),
    ],
)
def test_the_real_trainer_tells_memory_of_the_host_from_that_of_the_device(
    raised: str, code: str, tmp_path: Path
) -> None:
    """The worker's own `main`, whose job cannot be read for lack of memory."""
    script = f"""
    from harness.train import worker
    def fails(_): raise {raised}
    worker.job_of = fails
    sys.exit(worker.main())
    """
    assert refused(tmp_path, script).code == code


def test_sigterm_asks_the_trainer_to_save(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"""
    def stop(*_): tell("end", step=7, finished=False); sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    Path({str(ready)!r}).touch()
    time.sleep(60)
    """

    def ask() -> None:
        wait_for(ready)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert run(tmp_path, script)[0] == Outcome(7, False, 0)


def test_sigterm_before_the_trainer_can_answer_loses_nothing(tmp_path: Path) -> None:
    killer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    killer.start()
    assert run(tmp_path, "time.sleep(60)")[0] == Outcome(0, False, 0)


def test_a_trainer_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    """The supervisor gets SIGKILL: what it started is gone too, and with it the lock that it inherited."""
    worker = (
        "import os, time; from harness.supervise.signals import die_with_supervisor; die_with_supervisor();"
    )
    worker += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "from harness.supervise.process import *; from tests.support.scripted import Listener; import sys\n"
    )
    parent += f"attempt([sys.executable, '-c', {worker!r}], Listener(), Limits())"
    supervisor = subprocess.Popen([sys.executable, "-c", parent], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 60
    while (
        not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    supervisor.kill()
    supervisor.wait()
    # It may go while its file is read.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while "Z" not in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
