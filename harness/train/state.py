"""Training state: what is carried from step to step.

Frozen parameters have no gradient, moment or average.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from harness.model.pi05 import Params, initialize
from harness.model.quantize import kept
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Recipe
from harness.train.optimizer import optimizer


class TrainState(NamedTuple):
    """The state of a training run.

    `trained` is float32. `frozen` is bfloat16, as upstream stores it, or quantized. `ema` is the average of
    the trained parameters, or None. The average of a frozen parameter is the parameter itself, so it is not
    kept twice. `copies` follow from `trained` (`train.copies`); there are none unless it lies in host memory.
    """

    step: jax.Array
    trained: Params
    frozen: Params
    opt_state: optax.OptState
    ema: Params | None
    copies: Params = {}

    @property
    def params(self) -> Params:
        return self.trained | self.frozen

    @property
    def averaged(self) -> Params:
        """The parameters to deploy: the average if there is one."""
        return (self.trained if self.ema is None else self.ema) | self.frozen


def parameter_dtype(path: str, recipe: Recipe) -> Any:
    """float32 for a trained parameter, bfloat16 for a frozen one.

    Source: openpi scripts/train.py `init_train_state`, commit 15a9616.
    """
    return jnp.float32 if is_trained(path, recipe.model, recipe.train.trained) else jnp.bfloat16


def abstract_params(recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
    """Path → shape and type of every parameter, as a checkpoint stores it."""
    return {
        path: jax.ShapeDtypeStruct(shape, parameter_dtype(path, recipe))
        for path, shape in parameter_shapes(recipe.model).items()
    }


def state_from(params: Params, recipe: Recipe) -> TrainState:
    """The state at step 0 around these parameters. Call it in jit or in jax.eval_shape."""
    trained = {
        p: v.astype(jnp.float32)
        for p, v in params.items()
        if is_trained(p, recipe.model, recipe.train.trained)
    }
    frozen = {p: kept(p, v, recipe.train.frozen) for p, v in params.items() if p not in trained}
    # A copy, because the step donates its state: one buffer under two names could not be donated twice.
    ema = None if recipe.train.ema_decay is None else jax.tree.map(jnp.copy, trained)
    return TrainState(
        jnp.zeros((), jnp.int32), trained, frozen, optimizer(recipe.train.optimizer).init(trained), ema
    )


def fresh_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """The state at step 0 from random parameters."""
    return state_from(initialize(recipe.model, key), recipe)


def abstract_state(recipe: Recipe) -> TrainState:
    """The state's shapes and types, from the closed form. Nothing is allocated.

    `setup_of` calls it once. Other code takes the shapes from its `Setup`.
    """
    return jax.eval_shape(lambda params: state_from(params, recipe), abstract_params(recipe))
