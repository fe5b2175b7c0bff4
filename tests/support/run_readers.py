"""All readers of a run's files: the verbs that look at a run, and the first part of a resume.

That part is what a resume reads before it computes anything.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import click

from harness.cli import app
from harness.errors import HarnessError

# Of a run, what is text of ours. The checkpoints' own files: benchmarks/damage_checkpoints.py.
TEXTS = (
    "checkpoint.json",
    "choice.json",
    "curve.json",
    "dataset.json",
    "doctor.json",
    "held_out.jsonl",
    "machine.json",
    "manifest.json",
    "memory.json",
    "metrics.jsonl",
    "norm_stats.json",
    "plan.json",
    "recipe.yaml",
    "verdict.json",
    ".lock",
    "wandb_id.txt",
)


def outcome(reader: Callable[[Path], str], run: Path) -> str:
    """What the reader answers: its exit code, or the code of its refusal.

    Whatever else it raises is raised.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return reader(run)
    except HarnessError as error:
        return error.code if error.fix and str(error) else "a refusal without a fix"


def verb(*arguments: str) -> Callable[[Path], str]:
    """A verb; RUN stands for the run's path."""

    def call(run: Path) -> str:
        try:
            code = app([argument.replace("RUN", str(run)) for argument in arguments], standalone_mode=False)
        except click.exceptions.Exit as done:
            code = done.exit_code
        except SystemExit as done:
            code = done.code
        return f"exit code {code or 0}"

    return call


def resume(run: Path) -> str:
    """What `train --resume` reads of a run, up to where it would compute."""
    from harness.artifacts import Manifest
    from harness.flow.chain import Chain
    from harness.flow.find import find_run, recipe_of
    from harness.run.directory import RunDir
    from harness.run.job import job_of
    from harness.run.lock import holder, locked
    from harness.train.metrics import MetricsFile
    from harness.train.wandb import _run_id

    found = find_run(run, None, None, resume=True)
    recipe = recipe_of(found, None, [], own_first=True)
    holder(run)
    with locked(found.path):
        chain = Chain(found, recipe)
        chain.stats(chain.dataset())
        job_of(RunDir(run))
        found.read(Manifest)
        _run_id(found)
        MetricsFile(found.metrics, start_step=4).close()
    return "exit code 0"


READERS: dict[str, Callable[[Path], str]] = {
    "status": verb("status", "RUN", "--json"),
    "inspect": verb("inspect", "RUN", "--json"),
    "analyse": verb("analyse", "RUN", "--json"),
    "verify": verb("verify", "RUN", "RUN", "--json"),
    "choose": verb("choose", "RUN", "--json"),
    "report": verb("report", "RUN"),
    "resume": resume,
}
