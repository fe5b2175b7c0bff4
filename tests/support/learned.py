"""Steps of the tiny recipe, each compiled and computed once for all tests of a process."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harness.recipe.schema import Recipe
from harness.train.copies import with_copies
from harness.train.setup import setup_of
from harness.train.sharding import Layout
from harness.train.state import TrainState, state_from
from harness.train.step import make_step
from tests.support.tiny import random_batch, random_params, tiny

# Adam's eps would divide rounding noise by rounding noise at 1e-8.
LEARNS = (
    "train.optimizer.eps=1.0e-4",
    "train.optimizer.schedule={warmup_steps: 1, peak: 1.0e-3, decay_steps: 10, end: 0.0}",
    "train.ema_decay=0.9",
)


class Compiled(NamedTuple):
    """A jitted step, which donates its state, and where its state lies."""

    recipe: Recipe
    layout: Layout
    shapes: TrainState
    step: Any

    def begin(self) -> TrainState:
        params = {path: jnp.asarray(value) for path, value in random_params(self.recipe).items()}
        state = state_from(params, self.recipe)
        # Placed as the step leaves it: a state that lay elsewhere would be another program at the first step.
        return with_copies(jax.device_put(state, self.layout.of(state)), self.shapes, self.layout)


@functools.cache
def compiled(overrides: tuple[str, ...], in_host: tuple[str, ...] = (), **levers: Any) -> Compiled:
    recipe, layout = tiny(*overrides), Layout(jax.local_devices()[:1], host=in_host)
    shapes = setup_of(recipe, layout).shapes.state
    step = jax.jit(
        make_step(recipe, layout=layout, **levers),
        donate_argnums=0,
        out_shardings=(layout.of(shapes), layout.replicated),
    )
    return Compiled(recipe, layout, shapes, step)


def computed(program: Compiled, steps: int) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after so many steps from the beginning, on the host, and their metrics."""
    state, lines = program.begin(), []
    for i in range(steps):
        state, metrics = program.step(state, random_batch(program.recipe, seed=i), jax.random.key(5))
        lines.append({name: float(value) for name, value in metrics.items()})
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state)}
    # A step leaves everything where it was.
    assert kinds == ({"device", "pinned_host"} if program.layout.host else {"device"})
    return jax.device_get(state), lines


@functools.cache
def learned(
    overrides: tuple[str, ...] = LEARNS, steps: int = 3, *, in_host: tuple[str, ...] = (), **levers: Any
) -> tuple[TrainState, list[dict[str, float]]]:
    """As `computed`; asked again, it is the same answer."""
    return computed(compiled(overrides, in_host, **levers), steps)


def without_copies(state: TrainState) -> TrainState:
    """The state without its copies, which are the casts of the parameters."""
    for path, copy in state.copies.items():
        np.testing.assert_array_equal(copy, state.trained[path].astype(copy.dtype), err_msg=path)
    return state._replace(copies={})
