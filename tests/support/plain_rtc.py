"""Real-time chunking with `Pi05` itself: the reference that faster programs are compared with.

Axes: B rows, H action horizon, D action_dim of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.serve.rtc import MOST_GUIDANCE, Previous, continued_actions, guided_actions

if TYPE_CHECKING:
    import jax

    from harness.model.pi05 import Observation, Pi05


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
    import jax.numpy as jnp

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
    import jax.numpy as jnp

    if previous is None or previous.delay == 0:
        return model.sample_actions(observation, noise, steps)
    given = jnp.broadcast_to(np.arange(noise.shape[1]) < previous.delay, noise.shape[:2])
    velocity = model.velocity_of(observation, noise.shape[1])
    return continued_actions(velocity, noise, steps, jnp.asarray(previous.chunk), given)
