"""Copies: what the model reads of the trained parameters that lie in host memory.

They lie on the device from step to step, so that no step has to fetch the parameters before it can begin. The
update writes each piece of a copy with the piece of its parameter. A copy is in the compute type if the model
would cast the parameter before use, else in the parameter's own. The embedding table has none: rows of it are
looked up.

Copies follow from the parameters. So no checkpoint has them, and whoever makes a state makes them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from harness.model.pi05 import Params
from harness.recipe.parameters import EMBEDDING, is_cast_before_use
from harness.recipe.schema import Recipe
from harness.train.host import PINNED, fetch
from harness.train.sharding import Layout
from harness.train.state import TrainState


def abstract_copies(recipe: Recipe, trained: Params, layout: Layout) -> Params:
    """Path → shape and type of every copy: none if no parameter lies in host memory."""
    shardings = layout.of({"trained": trained})["trained"]
    dtype = jnp.dtype(recipe.model.compute_dtype)
    return {
        path: jax.ShapeDtypeStruct(x.shape, dtype if is_cast_before_use(path) else x.dtype)
        for path, x in trained.items()
        if shardings[path].memory_kind == PINNED and path != EMBEDDING
    }


def copier(copies: Params, layout: Layout) -> Any:
    """The jitted function that maps the parameters of these abstract `copies` to the copies themselves.

    The parameters pass through the device a piece at a time, so that none is there whole beside its copy. No
    device needs another one's part.
    """

    def copied(masters: Params) -> Params:
        return {
            path: fetch(x, copies[path].dtype, layout.cuttable(path, x.shape)) for path, x in masters.items()
        }

    return jax.jit(copied, out_shardings=layout.results({"copies": copies})["copies"])


def copies_of(trained: Params, copies: Params, layout: Layout) -> Params:
    """The copies of those of `trained`, where the state has them, that the abstract `copies` name."""
    return copier(copies, layout)({path: trained[path] for path in copies}) if copies else {}


def with_copies(state: TrainState, shapes: TrainState, layout: Layout) -> TrainState:
    """`state`, which was made without copies, with those that `shapes` has."""
    return state._replace(copies=copies_of(state.trained, shapes.copies, layout))
