"""What can be counted without a compiler: the parts of the state, what a checkpoint weighs, what the host
must hold. Bytes a device.
"""

from __future__ import annotations

import functools
import math

from harness.artifacts import Levers
from harness.recipe.parameters import counts, is_trained, parameter_shapes
from harness.recipe.schema import Model, Recipe, Trained
from harness.units import GIB

# A trainer's own: Python, JAX and the CUDA libraries, and the loader with the images that it keeps
# (data.loader.KEPT_BYTES and its row groups).
PROCESS_BYTES = 4 * GIB
_FLOAT32 = 4.0
_TABLE = "PaliGemma/llm/embedder/input_embedding"
# Bytes of one of Adam's two moments, and of a frozen parameter. Blocks of 256 share a float32 scale. Of
# quantized weights the scales are left out (a sixteenth more at most), and that what is no kernel stays in
# bfloat16: the figure must never be more than the truth.
_MOMENT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0 + 4 / 256}
_FROZEN = {"bfloat16": 2.0, "int8": 1.0, "int4": 0.5}


counted = functools.cache(counts)


@functools.cache
def _trained_table(model: Model, trained: Trained) -> int:
    return math.prod(parameter_shapes(model)[_TABLE]) if is_trained(_TABLE, model, trained) else 0


def state_parts(recipe: Recipe, levers: Levers) -> dict[str, int]:
    """Bytes of weights, moments and average that lie on each device during a step, and of the gradients that
    it makes.

    With the masters in host memory the device has bfloat16 copies of them, but none of the embedding table,
    of which it reads rows.
    """
    total, trained = counted(recipe.model, recipe.train.trained)
    on_device = {
        "weights": _FLOAT32 * trained,
        "moments": 2 * _MOMENT[recipe.train.optimizer.moments] * trained,
        "ema": 0.0,
    }
    if recipe.train.ema_decay is not None:
        on_device["ema"] = _FLOAT32 * trained
    if "masters" in levers.host:
        on_device["weights"] = 2.0 * (trained - _trained_table(recipe.model, recipe.train.trained))
    for name in ("ema", "moments"):
        if name in levers.host:
            on_device[name] = 0.0
    on_device["weights"] += _FROZEN[recipe.train.frozen] * (total - trained)
    on_device["gradients"] = _FLOAT32 * trained
    return {name: int(size / levers.fsdp) for name, size in on_device.items()}


def least_bytes(recipe: Recipe, levers: Levers) -> int:
    """No step of this plan needs fewer device bytes: what lies there while the microbatches are gone through.

    That is the state, and the one buffer in which gradients are summed; the embedding table's is made only
    after it.
    """
    parts = state_parts(recipe, levers)
    _, trained = counted(recipe.model, recipe.train.trained)
    summed = _FLOAT32 * (trained - _trained_table(recipe.model, recipe.train.trained)) / levers.fsdp
    return parts["weights"] + parts["moments"] + parts["ema"] + int(summed)


def pinned_bytes(recipe: Recipe, levers: Levers) -> int:
    """Bytes of host memory that hold parts of the state, over all devices of this machine."""
    _, trained = counted(recipe.model, recipe.train.trained)
    sizes = {"ema": _FLOAT32, "moments": 2 * _MOMENT[recipe.train.optimizer.moments], "masters": _FLOAT32}
    if recipe.train.ema_decay is None:
        sizes["ema"] = 0.0
    return int(sum(sizes[name] for name in levers.host) * trained) * (levers.devices // levers.fsdp)


def checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of one checkpoint: float32 parameters trained, two moments, the raw copy beside an average;
    bfloat16 what is frozen.
    """
    total, trained = counted(recipe.model, recipe.train.trained)
    copies = 1 + (recipe.train.ema_decay is not None)
    frozen = 0 if recipe.train.save == "trained" else 2 * (total - trained)
    return int(_FLOAT32 * copies * trained + 2 * _MOMENT[recipe.train.optimizer.moments] * trained) + frozen


def host_bytes(recipe: Recipe, levers: Levers) -> int:
    """Host memory of a run: the process, what lies there pinned, and the copy of the state from which a
    checkpoint is written.
    """
    return PROCESS_BYTES + pinned_bytes(recipe, levers) + checkpoint_bytes(recipe)


def breakdown(recipe: Recipe, levers: Levers, device_bytes: int, activations: int | None) -> dict[str, int]:
    """What `device_bytes` of the compiled step are made of; the parts add up to it.

    The state and the gradients are counted (parameters x type); `activations` is how much the compiler's
    figure grows with the microbatch, where two microbatches are known; the rest is the step's workspace.
    """
    parts = {name: size for name, size in state_parts(recipe, levers).items() if size}
    parts["gradients"] = max(
        0,
        min(
            parts["gradients"],
            device_bytes - sum(size for name, size in parts.items() if name != "gradients"),
        ),
    )
    rest = device_bytes - sum(parts.values())
    if activations is None or not 0 < activations <= rest:
        return parts | {"activations and workspace": rest}
    return parts | {"activations": activations, "workspace": rest - activations}
