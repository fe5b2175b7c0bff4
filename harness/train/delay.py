"""Simulated delays: the first actions of a chunk are given, and the loss counts the others.

A robot executes the actions of its previous chunk while the next one is computed. A model that is trained
with these actions given, clean and at their own flow time, continues them.
Source: Training-Time Action Conditioning for Efficient Real-Time Chunking, https://arxiv.org/abs/2512.05964.

Axes: B global batch, M microbatch, A action horizon.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# The delays' own stream of a step's key. `draw` splits the key in three, numbers 0 to 2.
_STREAM = 3


def draw_delays(key: jax.Array, rows: int, horizon: int, most: int) -> dict[str, jax.Array]:
    """The delay of each row, int32 [B], uniform from 0 to `most`, and the weight of its actions' losses.

    The weight, float32 [B], is that of all rows: B·A by the actions of the batch that count. It is taken
    before the batch is cut, so a mean over microbatches is the mean over the actions that count. It is 1 if
    no delay is drawn.
    """
    delay = jax.random.randint(jax.random.fold_in(key, _STREAM), (rows,), 0, most + 1)
    weight = rows * horizon / jnp.sum(horizon - delay)
    return {"delay": delay, "weight": jnp.full(rows, weight)}


def mean_loss(each: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """The mean of the losses [M, A], over all actions or over those that count."""
    return (each * inputs["weight"][:, None]).mean() if "delay" in inputs else each.mean()


def row_losses(each: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """The mean of each row's losses [M, A], over all its actions or over those that count. [M]."""
    return each.sum(axis=-1) / (each.shape[-1] - inputs["delay"]) if "delay" in inputs else each.mean(axis=-1)
