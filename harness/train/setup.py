"""What a training run, a plan's question and a prediction are set up with: the recipe, the shapes that follow
from it, and where every array lies.

Made once, when the devices are known, and handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from harness.model.quantize import Quantized, kept
from harness.recipe.schema import Recipe
from harness.train.sharding import Layout
from harness.train.state import TrainState, abstract_params, abstract_state


class Shapes(NamedTuple):
    """`params`: path → shape and type as a checkpoint stores them; `state`: those of the state that is
    trained.
    """

    params: dict[str, jax.ShapeDtypeStruct]
    state: TrainState


class Setup(NamedTuple):
    recipe: Recipe
    shapes: Shapes
    layout: Layout


def setup_of(recipe: Recipe, layout: Layout) -> Setup:
    """The setup of `recipe` over the devices of `layout`; nothing is allocated."""
    return Setup(recipe, Shapes(abstract_params(recipe), abstract_state(recipe)), layout)


def keeper(setup: Setup) -> Callable[[str, jax.Array], Any]:
    """keep(path, array) → what the state keeps of a parameter that was read: codes of a kernel that is frozen
    and quantized, else the array.

    Given to a reader of weights, it makes each leaf small before the next one comes, so that the dense
    weights never lie on the device together.
    """
    frozen = setup.shapes.state.frozen
    places = setup.layout.of(frozen)

    def keep(path: str, array: jax.Array) -> Any:
        if not isinstance(frozen.get(path), Quantized):
            return array
        return jax.jit(lambda x: kept(path, x, setup.recipe.train.frozen), out_shardings=places[path])(array)

    return keep
