"""AdamW with a clip by global norm, and the schedule of the learning rate."""

from __future__ import annotations

import optax

from harness.recipe.schema import Optimizer, Schedule
from harness.train.moments import scale_by_bfloat16_adam, scale_by_blockwise_adam


def learning_rate(schedule: Schedule) -> optax.Schedule:
    """Linear from peak / (warmup + 1) to peak, then a cosine down to `end`.

    Source: openpi src/openpi/training/optimizer.py `CosineDecaySchedule`, commit 15a9616.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=schedule.peak / (schedule.warmup_steps + 1),
        peak_value=schedule.peak,
        warmup_steps=schedule.warmup_steps,
        decay_steps=schedule.decay_steps,
        end_value=schedule.end,
    )


def optimizer(recipe: Optimizer, seed: int = 0) -> optax.GradientTransformation:
    """`adamw` of gradients clipped by their global norm.

    The step itself clips leaf by leaf; this chain's first state stays unused.
    """
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), adamw(recipe, seed))


def adamw(recipe: Optimizer, seed: int = 0) -> optax.GradientTransformation:
    """m ← b1·m + (1 - b1)·g; v ← b2·v + (1 - b2)·g²; p ← p - lr·(m̂ / (sqrt(v̂) + eps) + weight_decay·p).

    `seed` draws the rounding of bfloat16 moments, and nothing else.
    Source: https://arxiv.org/abs/1711.05101; openpi src/openpi/training/optimizer.py `AdamW`, commit 15a9616.
    """
    rate = learning_rate(recipe.schedule)
    if recipe.moments == "float32":
        return optax.adamw(rate, b1=recipe.b1, b2=recipe.b2, eps=recipe.eps, weight_decay=recipe.weight_decay)
    int8 = recipe.moments == "int8"
    adam = (
        scale_by_blockwise_adam(recipe.b1, recipe.b2, recipe.eps)
        if int8
        else scale_by_bfloat16_adam(recipe.b1, recipe.b2, recipe.eps, seed)
    )
    return optax.chain(
        adam, optax.add_decayed_weights(recipe.weight_decay), optax.scale_by_learning_rate(rate)
    )
