"""Real-time chunking (RTC): the next chunk is sampled so that it goes on from the previous one.

A robot executes actions while its next chunk is computed. What it executes meanwhile, the first `delay`
actions of the new chunk, is decided already; the rest should go on from there.

Sources: Real-Time Execution of Action Chunking Flow Policies, https://arxiv.org/abs/2506.07339, equations 1
to 5 and algorithm 1 (guided); Training-Time Action Conditioning for Efficient Real-Time Chunking,
https://arxiv.org/abs/2512.05964 (continued). Figures that the papers leave open are those of the authors'
simulation, Physical-Intelligence/real-time-chunking-kinetix, src/model.py, commit cc6c5f5.

**Direction of time.** The papers' flow goes from noise at τ = 0 to actions at τ = 1:
A(τ) = τ·actions + (1 - τ)·noise, with the velocity v = dA/dτ = actions - noise. Here, as in openpi, it goes
from noise at t = 1 to actions at t = 0: x(t) = t·noise + (1 - t)·actions, with u = dx/dt = noise - actions.
So with τ = 1 - t: x(t) = A(τ), u = -v, and of the papers' terms

    estimate of the actions   Â = A + (1 - τ)·v           = x - t·u
    guided velocity           v + k·Jᵀ·W·(Y - Â)          → u - k·Jᵀ·W·(Y - Â), J = dÂ/dx
    spread of the estimate    r² = (1-τ)² / (τ² + (1-τ)²) = t² / ((1-t)² + t²)
    guidance weight           k = min(β, (1-τ) / (τ·r²))  = min(β, (t² + (1-t)²) / (t·(1-t)))
    Euler's step              A + v/n at τ = i/n          = x - u/n at t = 1 - i/n

At t = 1 the quotient is infinite and k is β. No step is taken at t = 0.

Axes: B rows, H action horizon, D action_dim of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import jax

Form = Literal["guided", "continued"]
# β, the largest guidance weight: the papers' for five steps. A larger one follows the previous chunk closer.
MOST_GUIDANCE = 5.0


class Previous(NamedTuple):
    """What is left of the previous chunk, as the model sees actions.

    - `chunk`: float32 [B, H, D], normalized. Its first row is the action that is executed first after the new
      observation. Rows that no longer exist are 0.
    - `delay`: how many of its rows are executed before the new chunk is there (the papers' d).
    - `execution_horizon`: how many actions are executed from one new chunk to the next (the papers' s). As
      many rows at the chunk's end are new. (In LeRobot the name means the number of rows that count, H - s.)
    """

    chunk: np.ndarray
    delay: int
    execution_horizon: int

    @property
    def mask(self) -> np.ndarray:
        """The weight of each row, float32 [H]."""
        return soft_mask(self.chunk.shape[1], self.delay, self.execution_horizon)


class PreviousRows(NamedTuple):
    """What is left of the previous chunks, of the rows of a batch.

    Shapes: chunk float32 [B, H, D]; weights float32 [B, H], how much each action counts. Of a row without a
    previous chunk both are 0.
    """

    chunk: np.ndarray
    weights: np.ndarray


def form_of(most_delay: int) -> Form:
    """How a checkpoint goes on from a previous chunk, by the longest delay that it was trained with."""
    return "continued" if most_delay else "guided"


def weights_of(previous: Previous, form: Form) -> np.ndarray:
    """How much each action of the previous chunk counts, float32 [H]. Of a continued one: 1 or 0."""
    if form == "guided":
        return previous.mask
    return (np.arange(previous.chunk.shape[1]) < previous.delay).astype(np.float32)


def rows_of(previous: Sequence[Previous], rows: int, form: Form) -> PreviousRows:
    """Previous chunks of one row each as the first rows of a batch of `rows`."""
    _, horizon, width = previous[0].chunk.shape
    found = PreviousRows(np.zeros((rows, horizon, width), np.float32), np.zeros((rows, horizon), np.float32))
    for row, one in enumerate(previous):
        found.chunk[row], found.weights[row] = one.chunk[0], weights_of(one, form)
    return found


def soft_mask(horizon: int, delay: int, execution_horizon: int) -> np.ndarray:
    """W of equation 5, float32 [H]: how much each row of the previous chunk counts.

    1 for rows i < d; c·(eᶜ - 1) / (e - 1) with c = (H - s - i) / (H - s - d + 1) for d <= i < H - s; 0 after.
    Raises: ValueError unless 0 <= d <= H - s and 0 <= s.
    """
    end = horizon - execution_horizon
    if not 0 <= delay <= end <= horizon:
        raise ValueError(f"delay {delay} and execution horizon {execution_horizon} of {horizon} actions")
    rows = np.arange(horizon)
    share = (end - rows) / (end - delay + 1)
    decaying = share * np.expm1(share) / np.expm1(1.0)
    mask: np.ndarray = np.where(rows < delay, 1.0, np.where(rows < end, decaying, 0.0)).astype(np.float32)
    return mask


def guidance_weight(time: jax.Array | float, most: float = MOST_GUIDANCE) -> jax.Array:
    """k of equation 2: min(most, (t² + (1-t)²) / (t·(1-t))), for t in (0, 1]."""
    import jax.numpy as jnp

    t = jnp.asarray(time)
    return jnp.minimum(most, (jnp.square(t) + jnp.square(1 - t)) / (t * (1 - t)))


def guided_velocity(
    velocity: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    time: jax.Array | float,
    target: jax.Array,
    mask: jax.Array,
    most: float = MOST_GUIDANCE,
) -> jax.Array:
    """u - k·Jᵀ·W·(Y - Â) at one time: the velocity [B, H, D] that leads to `target` where `mask` counts.

    `velocity` is that of `x` at this time. J is never built: its transpose is applied by one
    vector-Jacobian product, which costs about as much as another call of `velocity`.

    Shapes: x, target [B, H, D]; mask [H] or [B, H]; time a scalar in (0, 1].
    """
    import jax

    def estimate(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = velocity(x)
        return x - time * found, found

    actions, transposed, found = jax.vjp(estimate, x, has_aux=True)
    (towards,) = transposed(mask[..., None] * (target - actions))
    return found - guidance_weight(time, most) * towards
