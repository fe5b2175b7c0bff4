"""AdamW behind a clip by global norm, and the schedule of the learning rate."""

from __future__ import annotations

import optax

from harness.recipe import Optimizer, Schedule


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


def optimizer(recipe: Optimizer) -> optax.GradientTransformation:
    """m ← b1·m + (1 - b1)·g; v ← b2·v + (1 - b2)·g²; p ← p - lr·(m̂ / (sqrt(v̂) + eps) + weight_decay·p), g clipped first.

    Source: https://arxiv.org/abs/1711.05101; openpi src/openpi/training/optimizer.py `AdamW`, commit 15a9616.
    """
    adamw = optax.adamw(learning_rate(recipe.schedule), b1=recipe.b1, b2=recipe.b2, eps=recipe.eps, weight_decay=recipe.weight_decay)
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), adamw)
