"""The process that trains: `python -m harness.train.worker RUN [--without-checkpoints]` carries out what the files of the run say.

Its parent (harness/supervise/run.py) has planned and examined the run, has set what JAX reads at its import, and watches. Every event
is a line of JSON on stdout; whatever libraries write there goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from harness.artifacts import Dataset, Metrics, NormStats, Plan
from harness.errors import HarnessError
from harness.received.files import there
from harness.received.text import word
from harness.recipe.schema import load_recipe
from harness.run.directory import RECIPE, RunDir
from harness.run.job import Job

# Source: prctl(2), PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


class Channel:
    """Tells the parent how it goes; a `Watcher`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def tell(self, event: str, **body: Any) -> None:
        self._out.write(json.dumps({"event": event} | body) + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        self.tell("say", text=text)

    def warn(self, text: str) -> None:
        self.tell("warn", text=text)

    def phase(self, name: str) -> None:
        self.tell("phase", name=name)

    def step(self, line: Metrics, steps: int) -> None:
        self.tell("step", line=line.model_dump(mode="json"), steps=steps)


def job_of(run: RunDir) -> Job:
    """The job that the files of `run` describe.

    Raises: HarnessError "run-incomplete" when one of them is missing; UnsafeFile when a directory of the run lies elsewhere.
    """
    run.check_own()
    plan, dataset, stats = run.read(Plan), run.read(Dataset), run.read(NormStats)
    if plan is None or dataset is None or stats is None or not there(run.path / RECIPE):
        raise HarnessError(
            "run-incomplete",
            f"{run.path} is not ready to be trained",
            need=f"{RECIPE}, {Plan.FILE}, {Dataset.FILE} and {NormStats.FILE}",
            fix=f"what writes them: harness train --run {word(run.path)}",
        )
    return Job(run, load_recipe(str(run.path / RECIPE), root=run.path), plan, dataset, stats)


def main() -> int:
    """0 when the run ended as it should or was asked to stop; 2 when it could not, with the reason as an event."""
    die_with_parent(int(os.environ.get("HARNESS_SUPERVISOR", "0")))
    channel = Channel(private_stdout())
    try:
        job = job_of(RunDir(Path(sys.argv[1])))
        from harness.train import device

        channel.phase("start")
        device.start()
        from harness.train.loop import train

        outcome = train(job._replace(keeps="--without-checkpoints" not in sys.argv), channel)
    except HarnessError as error:
        channel.tell("error", code=error.code, what=error.what, got=error.got, need=error.need, fix=error.fix)
        return 2
    except MemoryError as error:
        channel.tell("host-memory", text=str(error)[:500])
        return 2
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        channel.tell("exhausted", text=str(error).splitlines()[0][:500])
        return 2
    channel.tell("end", step=outcome.step, finished=outcome.finished)
    return 0


def private_stdout() -> TextIO:
    """The stdout that the parent reads; what libraries print goes to stderr from here on."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def die_with_parent(parent: int) -> None:
    """A trainer without its supervisor would hold the GPU and write into a run that somebody resumes."""
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
