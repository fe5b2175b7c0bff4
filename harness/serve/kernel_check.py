"""Compares the kernels of the action rows with XLA's operations, on the device that is to serve.

A kernel of our own is compiled by another compiler than the rest. So whoever serves with it sees first, on
random inputs of the model's shapes, that both give the same to the rounding of the compute type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from harness.errors import HarnessError
from harness.recipe.parameters import GEMMA, VISION
from harness.recipe.schema import Recipe
from harness.serve.attention import Turn, attention_of_rows, turn_of
from harness.serve.lengths import Kernels, buckets_of, cameras_of
from harness.serve.program import padded

# Of the largest value: two units in the last place of bfloat16, whose fraction has 7 bits.
NEAR = 2.0**-6
Attention = Callable[..., jax.Array]


def check_kernels(
    recipe: Recipe, rows: int, kernels: Kernels, attention: Attention = attention_of_rows
) -> float:
    """The largest difference, as a share of the largest value, for `rows` rows and each prompt length.

    Raises: HarnessError "serve-kernels-differ".
    """
    worst = 0.0
    for bucket in buckets_of(recipe.model):
        given = _given(recipe, rows, bucket)
        got, want = (
            np.asarray(jax.jit(functools.partial(attention, kernels=each))(*given), np.float32)
            for each in (kernels, "none")
        )
        most = float(np.abs(want).max())
        share = float(np.abs(got - want).max()) / most
        if not share <= NEAR:
            raise HarnessError(
                "serve-kernels-differ",
                "on this device the kernels of the action rows give other values than XLA's operations,"
                f" with prompts of {bucket} tokens; nobody was served",
                got=f"a difference of {share:.3g} of the largest value",
                need=f"at most {NEAR:g}, the rounding of {recipe.model.compute_dtype}",
                fix="harness serve STEP --xla-attention, which is slower; and report it with harness probe",
            )
        worst = max(worst, share)
    return worst


def _given(
    recipe: Recipe, rows: int, bucket: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], Turn, jax.Array]:
    """Inputs of `attention_of_rows`: normal numbers, a prompt that is half padding, padded action rows."""
    model, rng = recipe.model, np.random.default_rng(bucket)
    expert = GEMMA[model.action_expert.variant]
    patches = len(cameras_of(recipe)) * (model.image_size // VISION[model.vision].patch) ** 2
    prefix, acting = patches + padded(bucket), padded(model.action_horizon)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.dtype(model.compute_dtype))

    real = np.ones((rows, 1, prefix + acting), bool)
    real[:, :, patches + bucket // 2 : prefix] = False
    real[:, :, prefix + model.action_horizon :] = False
    cache = tuple(normal(rows, prefix, expert.head_dim) for _ in range(2))
    turn = turn_of(jnp.broadcast_to(prefix + jnp.arange(acting), (rows, acting)), expert.head_dim)
    heads = normal(rows, acting, expert.heads + 2, expert.head_dim)
    return heads, (cache[0], cache[1]), turn, jnp.asarray(real)
