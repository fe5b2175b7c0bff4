"""Compares what two files of weights do: actions on the same frames of a dataset, from the same noise.

Both are computed in float32, so that what differs is the weights and not the rounding of the computation.

Axes: F frames, H action horizon, D action_dim of the model, A real dimensions of an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import DimensionStats
from harness.data.batch import one_frame, own_stats
from harness.data.dataset import open_for
from harness.data.lerobot import LeRobotDataset
from harness.errors import HarnessError
from harness.recipe.schema import Model, Recipe

Array = np.ndarray[Any, Any]
# The largest difference of a normalized action, as a share of the largest (at least 1). A float32 file holds
# the source's numbers, or those merged in float32; the order of summation is all that may differ. bfloat16
# keeps 8 bits of each weight: 2^-9 of it may be lost, in each of 18 layers and 10 steps.
TOLERANCES: dict[str, float] = {"float32": 1e-4, "bfloat16": 5e-2}
_STEPS, _SEED = 10, 0


class Frames(NamedTuple):
    """Frames of a dataset as the model sees them, with the noise of each, float32 [F, H, D]."""

    indices: list[int]
    batches: list[dict[str, Any]]
    noise: Array


def frames_of(recipe: Recipe, stats: Mapping[Any, DimensionStats], count: int) -> Frames:
    """`count` frames, evenly over the recipe's dataset, or over those of a mixture one after the other.

    The model sees them as in training: the prompt with the state, if the recipe says so.
    Raises: HarnessError "frames-invalid", and those of the datasets.
    """
    if count < 1:
        raise HarnessError(
            "frames-invalid", "a check takes at least one frame", got=count, need="1 or more", fix="--check 4"
        )
    parts = [(part, open_for(part)[1]) for part in recipe.parts()]
    ends = np.cumsum([sum(episode.length for episode in data.episodes) for _, data in parts])
    total = int(ends[-1])
    indices = sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))})
    batches = [_frame(parts, ends, stats, i) for i in indices]
    shape = (len(indices), recipe.model.action_horizon, recipe.model.action_dim)
    noise = np.random.default_rng(_SEED).standard_normal(shape).astype(np.float32)
    return Frames(indices, batches, noise)


def _frame(
    parts: list[tuple[Recipe, LeRobotDataset]], ends: Array, stats: Mapping[Any, DimensionStats], i: int
) -> dict[str, Any]:
    """The batch of frame `i`, counted through the datasets that end at `ends`."""
    n = int(np.searchsorted(ends, i, side="right"))
    recipe, data = parts[n]
    return one_frame(
        recipe, data, own_stats(stats, recipe.data, data.features), i - int(ends[n - 1] if n else 0)
    )


def actions(locations: list[Path], model: Model, frames: Frames) -> Array:
    """Normalized actions [F, H, D] of the weights at `locations`, what lies on top first.

    Raises: HarnessError "weights-mismatch" and others of the weights.
    """
    import jax
    import jax.numpy as jnp

    from harness.checkpoint.leaves import read_leaves
    from harness.checkpoint.weights import check_parameters, parameter_leaves
    from harness.model.pi05 import bind, graph_of
    from harness.recipe.parameters import parameter_shapes
    from harness.train.step import observe

    model = model.model_copy(update={"compute_dtype": "float32"})
    graph, shapes = graph_of(model, remat="none"), parameter_shapes(model)
    leaves: dict[str, Any] = {}
    for location in reversed(locations):
        leaves |= parameter_leaves(location, shapes)
    check_parameters(locations[0], leaves, shapes)
    structs = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    params = dict(read_leaves(leaves, structs))

    def act(params: dict[str, jax.Array], inputs: dict[str, Any], noise: jax.Array) -> jax.Array:
        return bind(graph, params).sample_actions(observe(inputs, None), noise, _STEPS)

    sample = jax.jit(act)
    done = []
    with jax.default_matmul_precision("highest"):
        for batch, noise in zip(frames.batches, frames.noise, strict=True):
            inputs = {name: batch[name] for name in ("images", "tokens", "token_mask")}
            done.append(np.asarray(sample(params, inputs, noise[None]))[0])
    return np.stack(done)


def compare_actions(source: Array, written: Array, frames: Frames, dtype: str | None) -> dict[str, Any]:
    """The largest and the mean difference, and the tolerance.

    Raises: HarnessError "export-check-failed" if the largest is beyond the tolerance.
    """
    tolerance = TOLERANCES[dtype or "float32"] * max(1.0, float(np.abs(source).max()))
    difference = np.abs(source - written)
    largest = float(difference.max())
    if not largest <= tolerance:
        # `argmax` takes the first NaN for the largest.
        frame, step, dimension = np.unravel_index(int(np.argmax(difference)), difference.shape)
        raise HarnessError(
            "export-check-failed",
            "the written weights do not act as their source does; nothing was kept",
            got=f"a difference of {largest:.3g} at frame {frames.indices[frame]}, step {step} of the chunk,"
            f" dimension {dimension}",
            need=f"at most {tolerance:g} of normalized actions",
            fix="--dtype float32, if it was bfloat16; else keep the source and report this with its recipe",
        )
    return {
        "frames": len(frames.indices),
        "indices": frames.indices,
        "steps": _STEPS,
        "seed": _SEED,
        "largest": largest,
        "mean": float(difference.mean()),
        "tolerance": tolerance,
    }
