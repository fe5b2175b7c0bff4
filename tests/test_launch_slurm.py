"""Tests the batch script on a Slurm of two nodes, with a run that counts in the place of one that trains.

What trains is in tests/test_launch_slurm_train.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.launch.asked import Asked
from harness.launch.write import texts, write
from tests.support import slurm as support
from tests.support.launching import ODD, asked, given, run_script
from tests.support.member_counts import chain

ROOT = Path(__file__).parents[1]
needs_slurm = pytest.mark.skipif(support.why_not() is not None, reason=str(support.why_not()))
STEPS = 60


class Job(NamedTuple):
    """A job that was submitted."""

    slurm: support.Slurm
    asked: Asked
    number: str

    @property
    def log(self) -> str:
        return (Path(self.asked.out) / f"{self.number}.log").read_text(errors="replace")

    @property
    def saved(self) -> Any:
        return json.loads((Path(self.asked.run) / "checkpoints" / "state.json").read_text())

    def wait(self, done: Callable[[], object], what: str, limit_s: float = 120) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} in {limit_s} s: {self.log}\n{self.slurm.logs()}")
            time.sleep(0.2)

    def ends(self) -> str:
        """Its last state."""
        states: list[str] = []

        def ended() -> bool:
            states.append(self.slurm.state(self.number))
            return states[-1] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

        self.wait(ended, "end", 300)
        return states[-1]

    def counts(self) -> bool:
        return (Path(self.asked.run) / "checkpoints" / "state.json").exists()


@pytest.fixture(scope="module")
def slurm() -> Iterator[support.Slurm]:
    with support.running() as made:
        yield made


@pytest.fixture
def submitted(slurm: support.Slurm, tmp_path: Path) -> Callable[..., Job]:
    def submit(steps: int = STEPS, **more: Any) -> Job:
        each = counting(tmp_path, steps, **more)
        (script,) = write(each)
        return Job(slurm, each, slurm.ask("sbatch", "--parsable", str(script)))

    return submit


def counting(directory: Path, steps: int, **more: Any) -> Asked:
    data: dict[str, Any] = {
        "recipe": "smoke",
        "gpus": 0,
        "grace_s": 30,
        "runs": str(directory / "runs"),
        "out": str(directory / "out"),
        "options": [f"--steps={steps}"],
        "program": [sys.executable, "-m", "tests.support.member_counts"],
        "environment": {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    }
    return asked("slurm", **(data | more))


@needs_slurm
def test_a_script_with_odd_names_runs_one_process_on_each_node(
    submitted: Callable[..., Job], tmp_path: Path
) -> None:
    odd = ODD.replace("\\", "")
    job = submitted(10, name=f"n {odd}", runs=f"{tmp_path}/{odd}", out=f"{tmp_path}/out {odd}")
    assert job.ends() == "COMPLETED", job.log
    assert job.slurm.field(job.number, "Requeue") == "1"
    for number in (0, 1):
        assert f"{number}: process {number} begins at step 0" in job.log
        assert f"{number}: process {number} ends at step 10" in job.log
    assert job.saved == [10, chain(10)]


@needs_slurm
def test_a_killed_process_is_started_again_with_its_peers_and_nothing_is_lost(
    submitted: Callable[..., Job],
) -> None:
    job = submitted()
    job.wait(job.counts, "first save")
    os.kill(int((Path(job.asked.run) / "pid.0").read_text()), signal.SIGKILL)
    assert job.ends() == "COMPLETED", job.log
    assert "requeued: exit code 137" in job.log
    assert job.slurm.field(job.number, "Restarts") == "1"
    assert job.saved == [STEPS, chain(STEPS)]


@needs_slurm
def test_a_job_that_is_requeued_from_outside_goes_on_from_its_last_save(
    submitted: Callable[..., Job],
) -> None:
    job = submitted()
    job.wait(job.counts, "first save")
    job.slurm.ask("scontrol", "requeue", job.number)
    assert job.ends() == "COMPLETED", job.log
    begins = [int(line.rsplit(" ", 1)[1]) for line in job.log.splitlines() if "0: process 0 begins" in line]
    assert begins[0] == 0
    assert begins[1] > 0
    assert job.saved == [STEPS, chain(STEPS)]


@needs_slurm
def test_a_job_that_is_told_to_stop_saves_one_step_everywhere_and_stays_stopped(
    submitted: Callable[..., Job],
) -> None:
    job = submitted(10_000)
    job.wait(job.counts, "first save")
    job.slurm.ask("scancel", "--signal=TERM", job.number)
    assert job.ends() == "COMPLETED", job.log
    ends = {line.rsplit(" ", 1)[1] for line in job.log.splitlines() if " ends at step " in line}
    assert ends == {str(job.saved[0])}
    assert job.saved == [job.saved[0], chain(job.saved[0])]
    assert job.slurm.field(job.number, "Restarts") == "0"


@needs_slurm
def test_a_job_whose_time_ends_is_saved_and_requeued_until_it_is_done(
    submitted: Callable[..., Job],
) -> None:
    # Slurm looks at the time every 30 s: the signal comes between the 20th and the 50th second.
    job = submitted(150, time="1", grace_s=10)
    assert job.ends() == "COMPLETED", job.log
    assert "requeued: the time limit has come" in job.log
    assert int(job.slurm.field(job.number, "Restarts")) >= 1
    assert job.saved == [150, chain(150)]


@needs_slurm
def test_a_run_that_never_began_is_not_started_again(submitted: Callable[..., Job]) -> None:
    job = submitted(program=[sys.executable, "-c", "import sys; sys.exit(2)"])
    assert job.ends() == "FAILED"
    assert job.slurm.field(job.number, "Restarts") == "0"
    assert job.slurm.field(job.number, "ExitCode") == "2:0"


def launch(slurm: support.Slurm, each: Asked, code: str) -> subprocess.Popen[str]:
    """`harness launch --submit` with the script of `each`, in a process of its own."""
    program = (
        "from tests.test_launch_slurm import *\nfrom harness.launch.write import launched, write\n"
        "from harness.verbs.launch import _followed\n"
        f"each = Asked.model_validate_json(sys.argv[1])\n{code}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, each.model_dump_json()],
        env=slurm.environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_slurm
def test_whoever_follows_a_job_sees_it_end(slurm: support.Slurm, tmp_path: Path) -> None:
    each = counting(tmp_path, 10)
    process = launch(slurm, each, "print(_followed(each, launched(each, write(each))).model_dump_json())")
    out, err = process.communicate(timeout=120)
    assert json.loads(out)["state"] == "COMPLETED", err
    assert json.loads((tmp_path / "out" / "launch.json").read_text())["state"] == "COMPLETED"
    assert "process 0 ends at step 10" in err


@needs_slurm
def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_it(
    slurm: support.Slurm, tmp_path: Path
) -> None:
    each = counting(tmp_path, 10_000)
    process = launch(slurm, each, "print(_followed(each, launched(each, write(each))).model_dump_json())")
    while not (tmp_path / "runs" / each.name / "checkpoints" / "state.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    made = json.loads(out)
    assert made["state"] is None
    assert f"scancel {made['job']} " in err
    assert f"tail -F {tmp_path / 'out'}/{made['job']}.log" in err
    assert slurm.state(made["job"]) == "RUNNING"
    slurm.ask("scancel", made["job"])


@needs_slurm
def test_what_slurm_does_not_take_is_said_with_its_own_words(slurm: support.Slurm, tmp_path: Path) -> None:
    each = counting(tmp_path, 10, partition="nowhere")
    code = (
        "from harness.errors import HarnessError\ntry:\n    _followed(each, launched(each, write(each)))\n"
        "except HarnessError as error:\n    print(error)"
    )
    out, err = launch(slurm, each, code).communicate(timeout=60)
    assert out.startswith("[slurm-refused]"), err
    assert "invalid partition" in out


@needs_slurm
@pytest.mark.parametrize("more", [{}, {"cpus": 1, "memory_gib": 1, "time": "1-00:00:00"}])
def test_sbatch_would_take_the_script(slurm: support.Slurm, tmp_path: Path, more: dict[str, Any]) -> None:
    (script,) = write(counting(tmp_path, 10, **more))
    done = subprocess.run(
        ["sbatch", "--test-only", str(script)],
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


@pytest.mark.parametrize(
    ("code", "began", "before", "ends_in_s", "saved", "expected"),
    [
        (0, True, 0, None, True, ""),
        (0, True, 0, 3000, True, ""),
        (0, True, 0, 60, True, "the time limit has come"),
        (0, True, 0, 60, False, ""),
        (2, True, 0, 3000, True, "exit code 2"),
        (137, True, 2, None, True, "exit code 137"),
        (137, True, 3, None, True, ""),
        (2, False, 0, None, False, ""),
    ],
)
def test_a_script_asks_for_another_start_only_where_it_helps(
    tmp_path: Path, code: int, began: bool, before: int, ends_in_s: int | None, saved: bool, expected: str
) -> None:
    """With programs in the place of Slurm's; `before` failures of this job came earlier."""
    each = counting(tmp_path, 10)
    run, out = Path(each.run), Path(each.out)
    (run / "checkpoints").mkdir(parents=True)
    out.mkdir()
    if began:
        (run / "manifest.json").write_text("{}")
    (out / "7.failures").write_text("start\n" * before)
    script = texts(each)["job.sbatch"]
    future = time.time() + 5 if saved else time.time() - 1000
    os.utime(run / "checkpoints", (future, future))
    ends = "N/A" if ends_in_s is None else time.strftime("%FT%T", time.localtime(time.time() + ends_in_s))
    done = run_script(script, tmp_path, SRUN_CODE=str(code), ENDS=ends)
    assert given(tmp_path, "scontrol") == ([["requeue", "7"]] if expected else [])
    assert done.returncode == (0 if expected else code)
    assert ("requeued: " + expected in done.stdout) if expected else ("requeued" not in done.stdout)
