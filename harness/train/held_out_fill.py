"""Measures saves on disk that were not measured: one of a stop, or one whose pass was left off."""

from __future__ import annotations

from pathlib import Path

from harness.checkpoint.weights import load_params
from harness.data.loader import Loader
from harness.errors import HarnessError
from harness.model.pi05 import Params
from harness.received.text import word
from harness.run.job import Job
from harness.run.steps import whole_steps
from harness.run.watcher import Watcher
from harness.train.copies import copies_of
from harness.train.held_out import HeldOutPass, compiled_for
from harness.train.held_out_file import HeldOutFile
from harness.train.metrics import tell_unread
from harness.train.setup import Setup, keeper, setup_of
from harness.train.sharding import local_layout


def fill(job: Job, watcher: Watcher) -> list[int]:
    """The steps whose lines were added to held_out.jsonl, ascending.

    A save gives the same line here as in the run: the same program on the parameters that it holds.

    Raises: HarnessError "not-held-out", "does-not-fit", and those of the loader and of `load_params`.
    """
    if job.recipe.train.holdout is None:
        raise HarnessError(
            "not-held-out",
            f"{job.run.path} held no episode out, so there is nothing to measure on",
            got="no train.holdout in its recipe",
            need="a run whose recipe has train.holdout",
            fix=f"harness analyse {word(job.run.path)} says what its training loss shows",
        )
    setup = setup_of(job.recipe, local_layout(job.levers))
    program = compiled_for(job, setup, watcher)
    assert program is not None
    batch = job.recipe.train.global_batch
    loader = Loader(
        job.recipe, job.dataset, job.stats, batch_size=batch, seed=job.recipe.train.seed, workers=0
    )
    one, file = HeldOutPass(job, program, loader), HeldOutFile(job.run.held_out, start_step=None)
    tell_unread(job.run.held_out, file.unread, watcher)
    missing = [step for step in whole_steps(job.run.checkpoints) if not file.has(step, one.rows.sha256)]
    for step in missing:
        watcher.say(f"measuring step {step}")
        line = one.run(step, _deployed(setup, job.run.checkpoints / str(step)))
        assert line is not None
        file.write(line)
    return missing


def _deployed(setup: Setup, directory: Path) -> tuple[Params, Params]:
    """(the parameters to deploy that are trained, the frozen ones) of a step, as `deployed` of its state."""
    layout, state = setup.layout, setup.layout.structs(setup.shapes.state)
    wanted = layout.structs(setup.shapes.params) | (state.trained if state.ema is None else state.ema)
    found = load_params(directory, wanted, keep=keeper(setup)).params
    trained = {path: found[path] for path in state.trained}
    if state.ema is None:
        trained |= copies_of(trained, state.copies, layout)
    return trained, {path: found[path] for path in state.frozen}
