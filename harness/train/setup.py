"""Setup: the recipe, the shapes that follow from it, and the layout: a sharding for every array.

A training run, a plan's question and a prediction each have one. It is made once, when the devices are known,
and passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from harness.model.quantize import Quantized, kept
from harness.recipe.schema import Recipe
from harness.train.copies import abstract_copies
from harness.train.sharding import Layout
from harness.train.state import TrainState, abstract_params, abstract_state


class Shapes(NamedTuple):
    """Shapes and types of the parameters and of the training state.

    `params`: path → shape and type as a checkpoint stores them. `state`: those of the state that is trained.
    """

    params: dict[str, jax.ShapeDtypeStruct]
    state: TrainState


class Setup(NamedTuple):
    recipe: Recipe
    shapes: Shapes
    layout: Layout


def setup_of(recipe: Recipe, layout: Layout) -> Setup:
    """The setup of `recipe` over the devices of `layout`; nothing is allocated."""
    state = abstract_state(recipe)
    state = state._replace(copies=abstract_copies(recipe, state.trained, layout))
    return Setup(recipe, Shapes(abstract_params(recipe), state), layout)


def keeper(setup: Setup) -> Callable[[str, jax.Array], Any]:
    """keep(path, array) → the form in which the state keeps a parameter that was read.

    It is codes for a frozen, quantized kernel, else the array itself. A reader of weights that calls `keep`
    makes each leaf small before it reads the next. The dense weights therefore never lie on the device
    together.
    """
    frozen = setup.shapes.state.frozen
    shardings = setup.layout.of(frozen)

    def keep(path: str, array: jax.Array) -> Any:
        if not isinstance(frozen.get(path), Quantized):
            return array
        return jax.jit(lambda x: kept(path, x, setup.recipe.train.frozen), out_shardings=shardings[path])(
            array
        )

    return keep
