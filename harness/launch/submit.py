"""A batch script handed to Slurm, and its job followed until it ends.

Following changes nothing: whoever stops following leaves the job as it is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.received.text import one_line, visible, word

_LOOK_EVERY_S = 2.0
# Slurm's controller may be restarted while a job runs.
_SILENT_S = 600.0
_ASK_S = 60
# Source: squeue(1), JOB STATE CODES: those from which a job does not come back by itself.
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
}  # fmt: skip


class Ended(NamedTuple):
    """How a job has ended: its state, and the exit code of its script where Slurm knows it."""

    state: str
    code: int | None

    @property
    def good(self) -> bool:
        return self.state == "COMPLETED"


def submit(script: Path) -> str:
    """The number of the job that Slurm makes of the script.

    Raises: HarnessError "slurm-missing", "slurm-refused", "slurm-silent".
    """
    if shutil.which("sbatch") is None:
        raise HarnessError(
            "slurm-missing",
            "this machine has no sbatch, so nothing was submitted; the script is written",
            got=str(script),
            need="a machine from which jobs are submitted to Slurm",
            fix="log in there and submit the file: sbatch FILE; or leave --submit out",
        )
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", "--", str(script)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HarnessError(
            "slurm-silent",
            "Slurm does not say whether it has taken the script",
            got=f"no answer of sbatch in {_ASK_S} s",
            need="the number of a job",
            fix=f"squeue -u $USER lists your jobs; if it is not there: sbatch {word(script)}",
        ) from error
    # With several clusters: JOB;CLUSTER. A site's own sbatch may say more before it.
    job = done.stdout.strip().rpartition("\n")[2].partition(";")[0]
    if done.returncode != 0 or not job.isdigit():
        raise HarnessError(
            "slurm-refused",
            "Slurm does not take the script",
            got=one_line((done.stderr or done.stdout).strip()[-300:]),
            need="a partition, an account and a time limit that this cluster has",
            fix="sinfo lists the partitions; then --partition NAME --account NAME --time 1-00:00:00",
        )
    return job


def follow(job: str, log: Path, say: Callable[[str], None]) -> Ended:
    """Says what the job writes and each change of its state, until it has ended.

    Raises: HarnessError "slurm-silent" after ten minutes without an answer.
    """
    offset, before, answered = 0, "", time.monotonic()
    while True:
        state, reason, code = _look(job)
        if state:
            answered = time.monotonic()
        if time.monotonic() - answered > _SILENT_S:
            raise HarnessError(
                "slurm-silent",
                f"Slurm does not say how job {job} is; it was left as it is",
                got=one_line(reason),
                need="an answer of scontrol",
                fix=f"scontrol show job {job}",
            )
        # The last lines of a job that has ended are there before its state.
        offset = _tell(log, offset, say)
        now = f"{state} ({reason})" if state == "PENDING" and reason not in ("", "None") else state
        if now and now != before:
            say(f"job {job}: {now}")
            before = now
        if state in _ENDED:
            _tell(log, offset, say)
            return Ended(state, code)
        time.sleep(_LOOK_EVERY_S)


def _look(job: str) -> tuple[str, str, int | None]:
    """(state, reason, exit code). The state is empty where Slurm does not answer; the reason says why."""
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error), None
    if done.returncode != 0:
        return "", done.stderr.strip()[-200:], None
    fields = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", done.stdout))
    code = fields.get("ExitCode", "").partition(":")[0]
    return fields.get("JobState", ""), fields.get("Reason", ""), int(code) if code.isdigit() else None


def _tell(log: Path, offset: int, say: Callable[[str], None]) -> int:
    """Says the whole lines behind `offset`. Returns the offset behind them."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except OSError:
        return offset
    end = text.rfind(b"\n") + 1
    for line in text[:end].decode(errors="replace").splitlines():
        # A progress bar draws over itself.
        say(visible(line.rsplit("\r", 1)[-1]))
    return offset + end


def orders(job: str, log: str) -> list[str]:
    """How a person follows, stops and cancels the job, a command each."""
    return [
        f"tail -F {log}",
        f"squeue --job={job}",
        f"scancel --signal=TERM {job}     saves and ends it",
        f"scancel {job}     ends it",
    ]
