"""Tests that a run of two nodes, started by Slurm from one script, loses nothing to a kill and a requeue."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness.launch.write import write
from harness.recipe.load import to_yaml
from harness.run.directory import RunDir
from harness.run.steps import newest_step
from tests.support import slurm as support
from tests.support.launching import asked
from tests.support.members import recipe_of, stored
from tests.support.real_runs import metrics

ROOT = Path(__file__).parents[1]
STEPS = 12
pytestmark = pytest.mark.skipif(support.why_not() is not None, reason=str(support.why_not()))


def trainer_of(run: Path, number: int) -> int | None:
    """The id of the process that trains as number `number`; None while there is none."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        trains = {b"harness.train.worker", os.fsencode(run)} <= set(words)
        if trains and f"SLURM_PROCID={number}".encode() in variables:
            return int(path.name)
    return None


class Submitted:
    """A job that trains in `home`/run."""

    def __init__(self, slurm: support.Slurm, home: Path, cache: Path) -> None:
        home.mkdir()
        recipe = home / "small recipe.yaml"
        recipe.write_text(to_yaml(recipe_of(STEPS)))
        each = asked(
            "slurm",
            name="run",
            recipe=str(recipe),
            options=[],
            gpus=0,
            runs=str(home),
            out=str(home / "out"),
            program=[sys.executable, "-m", "harness.cli"],
            environment={"PYTHONPATH": str(ROOT), "HARNESS_CACHE": str(cache), "JAX_PLATFORMS": "cpu"},
        )
        (script,) = write(each)
        self.slurm, self.run, self.log = slurm, RunDir(each.run), home / "out"
        self.job = slurm.ask("sbatch", "--parsable", str(script))

    def wait(self, step: int | None) -> None:
        """Until this step is saved, or for None until the job has ended well."""
        deadline = time.monotonic() + 900
        while True:
            state = self.slurm.state(self.job)
            if step is not None and (newest_step(self.run.checkpoints, "ours") or 0) >= step:
                return
            if state == "COMPLETED" and step is None:
                return
            said = "".join(path.read_text() for path in self.log.glob("*.log"))
            assert state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), said[-4000:]
            assert time.monotonic() < deadline, said[-4000:]
            time.sleep(0.5)


def test_a_killed_and_requeued_run_of_two_nodes_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    with support.running() as slurm:
        whole = Submitted(slurm, tmp_path / "whole", tmp_path / "cache")
        whole.wait(None)
        killed = Submitted(slurm, tmp_path / "killed", tmp_path / "cache")
        killed.wait(4)
        found = trainer_of(killed.run.path, 1)
        assert found is not None
        os.kill(found, signal.SIGKILL)
        killed.wait(8)
        slurm.ask("scontrol", "requeue", killed.job)
        killed.wait(None)
        restarts = int(slurm.field(killed.job, "Restarts"))
    # The kill may come when the run is done with its last step; the requeue always starts it again.
    assert restarts >= 1
    assert [line["loss"] for line in metrics(killed.run.path)] == [
        line["loss"] for line in metrics(whole.run.path)
    ]
    first, second = (stored(run.checkpoints, STEPS) for run in (whole.run, killed.run))
    assert first.keys() == second.keys()
    assert [path for path in first if not np.array_equal(first[path], second[path])] == []
