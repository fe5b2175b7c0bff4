"""The held-out pass with a model of a test's own: no parameters, no accelerator."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from harness.artifacts.held_out import HeldOutLine
from harness.data.dataset import describe
from harness.data.given import statistics
from harness.data.loader import Loader
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir
from harness.run.job import Job
from harness.train.held_out import HeldOutPass
from harness.train.held_out_program import HeldOutProgram
from harness.train.setup import setup_of
from harness.train.sharding import Layout

Model = Callable[[HeldOutPass, int], np.ndarray]


def pass_of(recipe: Recipe, model: Model, losses: np.ndarray | None = None, rows: int = 4) -> HeldOutPass:
    """The pass whose program gives what `model` says of each row [A, E], and `losses` [N], else zeros."""
    dataset = describe(recipe)
    stats = statistics(recipe, dataset)
    loader = Loader(recipe, dataset, stats, batch_size=4, seed=0)
    job = Job(RunDir("nowhere"), recipe, None, dataset, stats)  # type: ignore[arg-type]
    done = [0]

    def run(*_: object) -> tuple[np.ndarray, np.ndarray]:
        at = [min(done[0] + i, len(one.rows.frames) - 1) for i in range(rows)]
        done[0] += rows
        return np.zeros(rows) if losses is None else losses[at], np.stack([model(one, row) for row in at])

    setup = setup_of(recipe, Layout(jax.local_devices()[:1]))
    one = HeldOutPass(job, HeldOutProgram(run, setup, rows, 0, 0), loader)
    return one


def measured(one: HeldOutPass, step: int = 4) -> HeldOutLine:
    """The line of the pass."""
    line = one.run(step, ({}, {}))
    assert line is not None
    return line


def target(one: HeldOutPass, row: int) -> np.ndarray:
    """What training would have the model give for this row [A, E]: its error is 0."""
    number = one._loader.number_of(one.rows.part[row], one.rows.frames[row])
    found: np.ndarray = one._loader.frames([number])["actions"][0]
    return found
