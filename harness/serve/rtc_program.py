"""The second program that serves: actions that go on from a previous chunk, beside `harness.serve.program`.

The mathematics is that of `harness.serve.rtc`, over the steps of the fast program. Delay and execution
horizon are in the weights of the rows, so one program of a shape serves all of them.

Axes: B rows of the batch, R action rows (the horizon, padded), D width, E action dim, L layers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harness.serve.program import Arrays, Call, Modulations, Sizes, change, observed
from harness.serve.rtc import guided_velocity


class After(NamedTuple):
    """What is left of the previous chunks.

    Shapes: chunk float32 [B, R, E]; weights float32 [B, R], 0 for rows that nothing is known of.
    """

    chunk: jax.Array
    weights: jax.Array


def act_guided(arrays: Arrays, sizes: Sizes, call: Call, after: After) -> jax.Array:
    """Actions float32 [B, R, E] by as many Euler steps as there are modulations, led towards the chunk."""
    expert, seen = arrays.expert, observed(arrays, sizes, call)
    steps = expert.modulations.shape[0]
    dt = np.float32(-1.0 / steps)

    def velocity(step: int, x: jax.Array) -> jax.Array:
        return change(expert, sizes, seen, x, step) / dt

    x = call.noise
    for step in range(steps):
        here = functools.partial(velocity, step)
        time = jnp.float32(1.0 + step * dt)
        x = x + dt * guided_velocity(here, x, time, after.chunk, after.weights)
    return x


def act_continued(arrays: Arrays, clean: jax.Array, sizes: Sizes, call: Call, after: After) -> jax.Array:
    """Actions float32 [B, R, E] whose rows with a weight are those of the chunk, exactly.

    `clean` [2·L + 1, 3, D] are the modulations of time 0, which those rows have at every step.
    """
    expert, seen = arrays.expert, observed(arrays, sizes, call)
    given = (after.weights > 0)[..., None]

    def by_row(at: Modulations) -> Modulations:
        return [jnp.where(given, clean[i, :, None, None], at[i][:, None, None]) for i in range(len(clean))]

    x = jnp.where(given, after.chunk, call.noise)
    for step in range(expert.modulations.shape[0]):
        x = jnp.where(given, after.chunk, x + change(expert, sizes, seen, x, step, by_row))
    return x
