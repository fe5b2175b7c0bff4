"""Accumulates the gradients of a global batch over microbatches in one float32 buffer, in place.

A backward pass that returns its gradients needs a second buffer of that size (12.5 GiB for π0.5). JAX can
give the backward pass references to add to instead. Beside the sum, then, only the gradient of one layer
exists at a time.

The token embedding is looked up before the model is differentiated. The model gets the embeddings of its own
tokens as a small table. The gradient of this table is added once, at the end, into a table of zeros.

A parameter may be passed as its copy in the compute type, which equals the model's own cast of it. The
gradient is then that of the copy, cast to float32: the transpose of the cast.

Axes: B global batch, K accumulation steps, M microbatch (B = K·M), T prompt tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from harness.model.pi05 import Params
from harness.recipe.parameters import EMBEDDING
from harness.train.sharding import Layout

# Arrays with a row for each sample.
Inputs = dict[str, Any]
# loss(parameters, inputs) of one microbatch.
Loss = Callable[[Params, Inputs], Any]


class Copied(NamedTuple):
    """A stacked parameter as its copy in the compute type.

    `gradient` carries only a float32 gradient; its value is never read.
    """

    copy: jax.Array
    gradient: jax.Array


def accumulate(
    loss: Loss,
    trained: Params,
    copies: Params,
    embedded: jax.Array | None,
    frozen: Params,
    inputs: Inputs,
    steps: int,
    layout: Layout,
    vocabulary: int,
    *,
    each_row: bool = False,
) -> tuple[jax.Array, Params] | tuple[jax.Array, Params, jax.Array]:
    """(mean loss, its float32 gradient) over `steps` microbatches.

    With `each_row` the loss returns (mean, the loss of each row [M]), and the rows' losses [K, M] come third.

    The gradient has the paths of `trained` and of `copies`, and the embedding's path if the embedding is
    trained. `copies` are parameters in the compute type. `embedded` holds the embeddings of all tokens, [B,
    T, D]; it is None if the embedding is not trained.
    """
    cut, lookup = layout.microbatches((inputs, embedded), steps)  # [K, M, ...]
    shapes = {path: x.shape for path, x in (trained | copies).items()}
    total = jax.tree.map(
        jax.new_ref, layout.constrain({path: jnp.zeros(shape, jnp.float32) for path, shape in shapes.items()})
    )
    unread = {path: jnp.zeros(x.shape, jnp.float32) for path, x in copies.items()}

    def add(value: jax.Array, one: tuple[Inputs, jax.Array | None]) -> tuple[jax.Array, Any]:
        inputs, rows = one

        def mean(params: Params, rows: jax.Array | None) -> Any:
            given = params | {path: Copied(copy, params[path]) for path, copy in copies.items()} | frozen
            if rows is None:
                return loss(given, inputs)
            numbers = jnp.arange(rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2])
            return loss(given | {EMBEDDING: rows.reshape(-1, rows.shape[-1])}, inputs | {"tokens": numbers})

        each, backward, *losses = jax.vjp(mean, trained | unread, rows, has_aux=each_row)
        of_rows = None if rows is None else jax.new_ref(jnp.zeros_like(rows))
        backward.with_refs(total, of_rows)(jnp.full_like(each, 1 / steps))
        return value + each / steps, (None if of_rows is None else jax.freeze(of_rows), *losses)

    value, (of_rows, *losses) = jax.lax.scan(add, jnp.zeros(()), (cut, lookup))
    gradient = {path: jax.freeze(ref) for path, ref in total.items()}
    if embedded is None or of_rows is None:
        return value, gradient, *losses
    zeros = layout.constrain({EMBEDDING: jnp.zeros((vocabulary, embedded.shape[-1]), jnp.float32)})[EMBEDDING]
    return value, gradient | {EMBEDDING: zeros.at[cut["tokens"]].add(of_rows)}, *losses


def read_copies(layer: Any) -> Any:
    """A layer's parameters, each `Copied` replaced by the array that the model reads."""
    return jax.tree.map(
        lambda x: _read(*x) if isinstance(x, Copied) else x, layer, is_leaf=lambda x: isinstance(x, Copied)
    )


_read: jax.custom_vjp[jax.Array] = jax.custom_vjp(lambda copy, _gradient: copy)
_read.defvjp(lambda copy, _: (copy, None), lambda _, cotangent: (None, cotangent.astype(jnp.float32)))
