"""Real-time chunking with `Pi05` itself: the reference that faster programs are compared with.

Axes: B rows, H action horizon, D action_dim of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from harness.model.pi05 import Observation, Pi05
from harness.serve.rtc import MOST_GUIDANCE, Previous, guided_velocity

# velocity(x [B, H, D], time [B]) → [B, H, D].
Velocity = Callable[[jax.Array, jax.Array], jax.Array]
# The same, with the actions that are given clean: bool [B, H].
GivenVelocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sample_after(
    model: Pi05,
    observation: Observation,
    noise: jax.Array,
    steps: int,
    previous: Previous | None,
    *,
    most_delay: int,
) -> jax.Array:
    """Actions [B, H, D] that go on from `previous`, in the form that the model was trained for.

    `most_delay` is that of its recipe (`Train.most_delay`): a model that was trained with delays continues
    the given actions, any other is guided.
    """
    sample = sample_continued if most_delay else sample_guided
    return sample(model, observation, noise, steps, previous)


def sample_guided(
    model: Pi05,
    observation: Observation,
    noise: jax.Array,
    steps: int,
    previous: Previous | None,
    *,
    most: float = MOST_GUIDANCE,
) -> jax.Array:
    """Actions [B, H, D], guided towards the previous chunk.

    Without one, or where none of its rows counts, they are those of `sample_actions`, bit for bit.
    """
    if previous is None or not previous.mask.any():
        return model.sample_actions(observation, noise, steps)
    velocity = model.velocity_of(observation, noise.shape[1])
    target, mask = jnp.asarray(previous.chunk), jnp.asarray(previous.mask)
    return guided_actions(lambda x, time: velocity(x, time, None), noise, steps, target, mask, most=most)


def sample_continued(
    model: Pi05, observation: Observation, noise: jax.Array, steps: int, previous: Previous | None
) -> jax.Array:
    """Actions [B, H, D] whose first `previous.delay` rows are those of the previous chunk, exactly.

    For a model that was trained with such delays. Without one they are those of `sample_actions`.
    """
    if previous is None or previous.delay == 0:
        return model.sample_actions(observation, noise, steps)
    given = jnp.broadcast_to(np.arange(noise.shape[1]) < previous.delay, noise.shape[:2])
    velocity = model.velocity_of(observation, noise.shape[1])
    return continued_actions(velocity, noise, steps, jnp.asarray(previous.chunk), given)


def guided_actions(
    velocity: Velocity,
    noise: jax.Array,
    steps: int,
    target: jax.Array,
    mask: jax.Array,
    *,
    most: float = MOST_GUIDANCE,
) -> jax.Array:
    """Actions [B, H, D] by `steps` Euler steps from `noise`, guided towards `target` where `mask` counts.

    Any flow model can be guided. One compiled program serves every delay and execution horizon: they are in
    the mask, [H] or [B, H]. A row whose mask is 0 throughout is not guided.
    """
    dt = -1.0 / steps

    def euler(i: jax.Array, x: jax.Array) -> jax.Array:
        time = 1.0 + i * dt
        rows = jnp.full(x.shape[:1], time)
        return x + dt * guided_velocity(lambda x: velocity(x, rows), x, time, target, mask, most)

    return jax.lax.fori_loop(0, steps, euler, noise)


def continued_actions(
    velocity: GivenVelocity, noise: jax.Array, steps: int, chunk: jax.Array, given: jax.Array
) -> jax.Array:
    """Actions [B, H, D] by `steps` Euler steps from `noise`; the `given` rows are those of `chunk`, exactly.

    For models that were trained with delays (train.action_delay). It costs what sampling costs.

    Shapes: noise, chunk [B, H, D]; given bool [B, H].
    """
    dt, fixed = -1.0 / steps, given[..., None]

    def euler(i: jax.Array, x: jax.Array) -> jax.Array:
        time = jnp.full(x.shape[:1], 1.0 + i * dt)
        return jnp.where(fixed, chunk, x + dt * velocity(x, time, given))

    return jax.lax.fori_loop(0, steps, euler, jnp.where(fixed, chunk, noise))
