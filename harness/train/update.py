"""Updates the parameters, the optimizer's state and the average, leaf by leaf and in place.

The gradients' global norm is computed first. The clip is part of each leaf's update, so there is no second,
clipped copy of the gradients. What lies in host memory is streamed: a leaf's parameters, moments and average
pass through the device together, a piece at a time. With each piece of a parameter that goes back, that of
its copy is written for the next step.

Axes: none are named here; an update is elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harness.errors import HarnessError
from harness.model.pi05 import Params
from harness.model.quantize import Quantized
from harness.recipe.parameters import is_kernel
from harness.recipe.schema import Recipe
from harness.train.host import Arrays, Job, on_host, stream
from harness.train.optimizer import adamw, learning_rate
from harness.train.sharding import Layout
from harness.train.state import TrainState

Clip = Callable[[jax.Array], jax.Array]


def apply_gradients(
    recipe: Recipe, state: TrainState, loss: jax.Array, grads: Params, layout: Layout | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """(state, metrics as in `make_step`) after one clipped AdamW update and one update of the average."""
    layout = layout or Layout(jax.local_devices()[:1])
    norm = optax.tree.norm(grads)
    clip = _clip(norm, recipe.train.optimizer.clip_norm)
    unclipped, moments = state.opt_state
    streamed = [path for path in state.trained if _is_streamed(path, state)]
    resident = [path for path in state.trained if path not in streamed]
    # 1. What lies on the device, in one go.
    adam = adamw(recipe.train.optimizer, recipe.train.seed)
    updates, moved_moments = adam.update(
        {path: clip(grads[path]) for path in resident},
        _only(moments, resident),
        _only(state.trained, resident),
    )
    trained = optax.apply_updates(_only(state.trained, resident), updates)
    ema, squares = dict(state.ema or {}), jnp.zeros(())
    here = [path for path in resident if path in ema and not on_host(ema[path])]
    if here:
        ema |= averaged(recipe, _only(ema, here), _only(trained, here), state.step + 1)
    # 2. What does not, leaf by leaf.
    leaves = {path: _Leaf(recipe, path, state) for path in streamed}
    jobs = {
        path: _average_job(recipe, path, ema, trained[path], state.step + 1, layout)
        for path in resident
        if path in ema and path not in here
    } | {path: leaf.job(clip, grads[path], state.step + 1, layout) for path, leaf in leaves.items()}
    passed = dict(zip(jobs, stream(list(jobs.values()), after=norm), strict=True))
    ema |= {path: moved[-1] for path, (moved, _) in passed.items() if path in ema}
    copies = {path: leaves[path].copy_of(passed[path][0]) for path in state.copies}
    for path, leaf in leaves.items():
        moved, square = passed[path]
        trained, moved_moments = trained | {path: moved[0]}, _joined(moved_moments, leaf.moments_of(moved))
        squares += square if is_kernel(path, moved[0].shape) else 0.0
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        "param_norm": (
            jnp.sqrt(jnp.square(kernel_norm(_only(trained, resident) | state.frozen)) + squares)
            if streamed
            else kernel_norm(trained | state.frozen)
        ),
        "learning_rate": jnp.asarray(learning_rate(recipe.train.optimizer.schedule)(state.step), jnp.float32),
    }
    trained = {path: trained[path] for path in state.trained}
    return (
        TrainState(
            state.step + 1,
            trained,
            state.frozen,
            (unclipped, moved_moments),
            ema if state.ema is not None else None,
            copies,
        ),
        metrics,
    )


def averaged(recipe: Recipe, ema: Params, trained: Params, done: jax.Array) -> Params:
    """ema ← d·ema + (1 - d)·parameters with d = decay^k, at every k-th step (`ema_every_steps`).

    Between these steps the average stays. k = 1 is the recipe's average. With k > 1 the weight of the past is
    the same after every k-th step, and the k - 1 parameters in between are left out. After n steps the
    average is that of step n - n mod k. `done` is the number of steps, this one included.
    """
    every = recipe.train.ema_every_steps
    decay = (recipe.train.ema_decay or 0.0) ** every

    def follow(ema: Params) -> Params:
        return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, trained)

    return follow(ema) if every == 1 else jax.lax.cond(done % every == 0, follow, lambda ema: ema, ema)


def kernel_norm(params: Params) -> jax.Array:
    """L2 norm of all kernels (see `is_kernel`): the fingerprint of the weights that a run started from."""
    kernels = [value for path, value in params.items() if is_kernel(path, value.shape)]
    norm = optax.tree.norm(
        [value.astype(jnp.float32) for value in kernels if not isinstance(value, Quantized)]
    )
    quantized = [value.squares() for value in kernels if isinstance(value, Quantized)]
    return jnp.sqrt(jnp.square(norm) + sum(quantized)) if quantized else norm


def _clip(norm: jax.Array, most: float) -> Clip:
    """g → g if norm < most, else g / norm · most.

    It is optax.clip_by_global_norm of one leaf, operation for operation.
    """
    return lambda g: jax.lax.select(
        jnp.broadcast_to(norm < most, g.shape), g, g / norm.astype(g.dtype) * most
    )


def _is_streamed(path: str, state: TrainState) -> bool:
    """Whether a leaf's parameter or one of its moments lies in host memory."""
    return any(on_host(x) for x in [state.trained[path], *jax.tree.leaves(_only(state.opt_state, [path])[1])])


def _average_job(
    recipe: Recipe, path: str, ema: Params, trained: jax.Array, done: jax.Array, layout: Layout
) -> Job:
    def piece(moved: Arrays, read: Arrays) -> tuple[Arrays, jax.Array]:
        return (averaged(recipe, {"": moved[0]}, {"": read[0]}, done)[""],), jnp.zeros(())

    return Job(piece, (ema[path],), (trained,), layout.cuttable(path, trained.shape))


class _Leaf:
    """A parameter that is streamed, with its average (or None), its moments and its copy (or None)."""

    def __init__(self, recipe: Recipe, path: str, state: TrainState) -> None:
        if recipe.train.optimizer.moments == "bfloat16":
            raise HarnessError(
                "plan-invalid",
                f"moments in {recipe.train.optimizer.moments} are not streamed from host memory",
                got="levers.host with moments or masters",
                need="moments in float32 or int8, or only the average (ema) in host memory",
                fix=(
                    "harness plan again; for moments or masters in host memory --set"
                    " train.optimizer.moments=int8"
                ),
            )
        self._recipe, self._path, self._parameter = recipe, path, state.trained[path]
        self._ema = (state.ema or {}).get(path)
        self._copies = (state.copies[path],) if path in state.copies else ()
        self._moments, self._structure = jax.tree.flatten(_only(state.opt_state[1], [path]))
        # The moments, and the scales of 8-bit moments, which have all of the parameter's axes but the last.
        self._large = [
            i
            for i, x in enumerate(self._moments)
            if x.ndim == self._parameter.ndim and x.shape[:-1] == self._parameter.shape[:-1]
        ]

    def job(self, clip: Clip, grads: jax.Array, done: jax.Array, layout: Layout) -> Job:
        """Its update. It moves (parameter, moments, copy if there is one, average if there is one).

        The scalar is the sum of the squares of the new parameter.
        """
        recipe, path, large = self._recipe, self._path, self._large
        adam = adamw(recipe.train.optimizer, recipe.train.seed)

        def piece(moved: Arrays, read: Arrays) -> tuple[Arrays, jax.Array]:
            old = {path: moved[0]}
            updates, state = adam.update({path: clip(read[0])}, self.moments_of(moved), old)
            new = optax.apply_updates(old, updates)
            average = () if self._ema is None else (averaged(recipe, {path: moved[-1]}, new, done)[path],)
            after = jax.tree.leaves(state)
            kept = new[path]
            if self._copies:
                # The copy is the cast of what is kept. XLA might otherwise compute the parameter once for
                # each, with other roundings.
                kept = jax.lax.optimization_barrier(kept)
            copies = tuple(kept.astype(copy.dtype) for copy in self._copies)
            return (kept, *(after[i] for i in large), *copies, *average), jnp.sum(jnp.square(new[path]))

        moved = (
            self._parameter,
            *(self._moments[i] for i in large),
            *self._copies,
            *(() if self._ema is None else (self._ema,)),
        )
        return Job(piece, moved, (grads,), layout.cuttable(path, self._parameter.shape))

    def copy_of(self, moved: Arrays) -> jax.Array:
        """The copy among `moved`, if there is one."""
        return moved[1 + len(self._large)]

    def moments_of(self, moved: Arrays) -> Any:
        """The optimizer's state with the moments among `moved`, whole arrays or pieces of them."""
        large = self._large
        return self._structure.unflatten(
            [moved[1 + large.index(i)] if i in large else x for i, x in enumerate(self._moments)]
        )


def _is_by_path(node: Any) -> bool:
    return isinstance(node, dict)


def _only(tree: Any, paths: list[str]) -> Any:
    """`tree` with every dict over parameter paths reduced to `paths`."""
    return jax.tree.map(
        lambda node: {path: node[path] for path in paths} if _is_by_path(node) else node,
        tree,
        is_leaf=_is_by_path,
    )


def _joined(tree: Any, more: Any) -> Any:
    """`tree` with the entries of `more` for other paths; a node without paths is that of `tree`."""
    return jax.tree.map(
        lambda node, other: node | other if _is_by_path(node) else node, tree, more, is_leaf=_is_by_path
    )
