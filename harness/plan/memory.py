"""Counts without a compiler: the state's parts, a checkpoint's size, the host's memory. Bytes a device."""

from __future__ import annotations

import functools
import math

from harness.artifacts.plan import STREAMED_HOST_BYTES, Levers
from harness.recipe.parameters import counts, halves, is_cast_before_use, is_trained, parameter_shapes
from harness.recipe.schema import Model, Recipe, Trained
from harness.units import GIB

# The trainer's own memory: Python, JAX and the CUDA libraries, and the loader with the images that it keeps
# (data.loader.KEPT_BYTES and its row groups).
PROCESS_BYTES = 4 * GIB
# Bytes that the reader of weights holds beside the leaf that it reads: checkpoint.leaves.IN_FLIGHT_BYTES.
IN_FLIGHT_BYTES = GIB
_FLOAT32, _COPY = 4.0, 2.0
_TABLE = "PaliGemma/llm/embedder/input_embedding"
# What is on the device of masters that pass through it: two pieces of `train.host`.
_PIECES = 2 * 4 * 2**23
# Bytes of one of Adam's two moments, and of a frozen parameter. Blocks of 256 share a float32 scale. For
# quantized weights the figure leaves out the scales (a sixteenth more at most). It also counts what is no
# kernel as quantized, although that stays in bfloat16. The figure must never exceed the truth.
_MOMENT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0 + 4 / 256}
# Parts of a breakdown: what grows with the rows computed at once, and where that is not known apart.
ACTIVATIONS, REST = "activations", "activations and workspace"
_FROZEN = {"bfloat16": 2.0, "int8": 1.0, "int4": 0.5}


counted = functools.cache(counts)


@functools.cache
def _trained_table(model: Model, trained: Trained) -> int:
    return math.prod(parameter_shapes(model)[_TABLE]) if is_trained(_TABLE, model, trained) else 0


@functools.cache
def _copies(model: Model, trained: Trained) -> float:
    """Bytes of what the model reads of masters in host memory (`train.copies`), the compute type bfloat16.

    Parameters that are too small to lie there are counted too.
    """
    return sum(
        math.prod(shape) * (_COPY if is_cast_before_use(path) else _FLOAT32)
        for path, shape in parameter_shapes(model).items()
        if is_trained(path, model, trained) and path != _TABLE
    )


def table_bytes(recipe: Recipe, levers: Levers) -> int:
    """Bytes of the trained embedding table that pass to all devices of this machine for one look-up of rows.

    0 if it does not lie in host memory.
    """
    if "masters" not in levers.host:
        return 0
    table = _trained_table(recipe.model, recipe.train.trained)
    return int(_FLOAT32 * table) * (levers.devices // levers.fsdp) // levers.hosts


def state_parts(recipe: Recipe, levers: Levers) -> dict[str, int]:
    """Bytes of weights, moments, average and gradients that lie on each device during a step.

    With the masters in host memory the device holds copies of them, between steps too. It has no copy of the
    embedding table, of which it reads rows.
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
        on_device["weights"] = _copies(recipe.model, recipe.train.trained)
    for name in ("ema", "moments"):
        if name in levers.host:
            on_device[name] = 0.0
    on_device["weights"] += _FROZEN[recipe.train.frozen] * (total - trained)
    on_device["gradients"] = _FLOAT32 * trained
    return {name: int(size / levers.fsdp) for name, size in on_device.items()}


def least_bytes(recipe: Recipe, levers: Levers) -> int:
    """A lower bound of the device bytes of any step of this plan.

    It counts what lies on the device during the microbatches: the state, and the one buffer in which
    gradients are summed. The buffer of the embedding table is made only afterwards.
    """
    parts = state_parts(recipe, levers)
    _, trained = counted(recipe.model, recipe.train.trained)
    summed = _FLOAT32 * (trained - _trained_table(recipe.model, recipe.train.trained)) / levers.fsdp
    return parts["weights"] + parts["moments"] + parts["ema"] + int(summed)


def pinned_bytes(recipe: Recipe, levers: Levers) -> int:
    """Bytes of host memory that hold parts of the state, over all devices of this machine."""
    return _of_every_replica(recipe, levers, sum(_hosted(recipe, levers)))


def exchanged_bytes(recipe: Recipe, levers: Levers) -> int:
    """Bytes that an update moves between host memory and all devices of this machine, one after the other.

    All of `pinned_bytes` arrive and go back. What goes back while as much arrives is not counted.
    """
    sizes = _hosted(recipe, levers)
    return _of_every_replica(
        recipe, levers, 2 * max(sum(sizes[at] for at in group) for group in halves(sizes))
    )


def _hosted(recipe: Recipe, levers: Levers) -> list[float]:
    """Bytes a parameter of each array in host memory."""
    moment = _MOMENT[recipe.train.optimizer.moments]
    average = [] if recipe.train.ema_decay is None else [_FLOAT32]
    sizes = {"ema": average, "moments": [moment, moment], "masters": [_FLOAT32]}
    return [size for name in levers.host for size in sizes[name]]


def _of_every_replica(recipe: Recipe, levers: Levers, of_a_parameter: float) -> int:
    """So many bytes a trained parameter, over all devices of this machine."""
    _, trained = counted(recipe.model, recipe.train.trained)
    return int(of_a_parameter * trained) * (levers.devices // levers.fsdp) // levers.hosts


def phase_bytes(recipe: Recipe, levers: Levers, phase: str) -> int:
    """Device bytes of a phase beside the step, "init", "load" or "save", without the compiler.

    - init: the state without copies of masters. What goes to the host, or is quantized, is there in two more
      copies of a leaf at most (XLA's program of the published recipe with all in host memory has 8.71 GiB;
      this counts 9.00). The copies are made next, a piece at a time.
    - load: every trained parameter in float32 on the device, wherever it will lie, and what is made around
      it. One leaf is there twice on its way to the host, and a frozen one whole until it is quantized. The
      copies are made when the masters have left.
    - save: the state. Of several devices that hold the same part, each cuts out a share of what is saved.
    tests/test_plan_atlas.py compares load and save with the compiler's answers.
    """
    hosted = [part for part in levers.host if part != "masters"]
    parts = state_parts(recipe, levers.model_copy(update={"host": hosted}))
    held = loaded = parts["weights"] + parts["moments"] + parts["ema"]
    copies = 0
    if "masters" in levers.host:
        _, trained = counted(recipe.model, recipe.train.trained)
        held -= int(_FLOAT32 * trained / levers.fsdp)
        copies = int(_copies(recipe.model, recipe.train.trained) / levers.fsdp)
    if phase == "save":
        replicas = levers.devices // levers.fsdp
        return held + copies + (held // replicas if replicas > 1 else 0)
    passing = int(_largest_passing(recipe, to_host=bool(levers.host)))
    if phase == "load":
        return loaded + passing
    return held + max(2 * passing, copies + _PIECES if copies else 0)


def _largest_passing(recipe: Recipe, *, to_host: bool) -> float:
    """Bytes of the largest leaf that is on the device for a moment beside the state: 0 if none is."""
    model, train = recipe.model, recipe.train
    sizes = [
        math.prod(shape) * (_FLOAT32 if is_trained(path, model, train.trained) else _FROZEN["bfloat16"])
        for path, shape in parameter_shapes(model).items()
        if (to_host if is_trained(path, model, train.trained) else train.frozen != "bfloat16")
    ]
    return max(sizes, default=0.0)


def checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of one checkpoint.

    Trained parameters count in float32, with two moments, and with the raw copy beside an average. Frozen
    parameters count in bfloat16.
    """
    total, trained = counted(recipe.model, recipe.train.trained)
    copies = 1 + (recipe.train.ema_decay is not None)
    frozen = 0 if recipe.train.save == "trained" else 2 * (total - trained)
    return int(_FLOAT32 * copies * trained + 2 * _MOMENT[recipe.train.optimizer.moments] * trained) + frozen


def host_bytes(recipe: Recipe, levers: Levers) -> int:
    """Host memory of a run: the process, the pinned parts of the state, and what a save takes beside it.

    A streamed save may take less than the reader of weights, or of a checkpoint. Where all of the state is in
    host memory, what was not read yet is not there either.
    """
    pinned = pinned_bytes(recipe, levers)
    beside = saving_bytes(recipe, levers)
    if levers.save == "streamed":
        total, trained = counted(recipe.model, recipe.train.trained)
        reading = reading_bytes(recipe.model)
        all_pinned = "masters" in levers.host and trained == total
        beside = max(beside, max(IN_FLIGHT_BYTES, reading - pinned) if all_pinned else reading)
    return PROCESS_BYTES + pinned + beside


@functools.cache
def reading_bytes(model: Model) -> int:
    """Bytes that the reader of weights holds: the largest leaf, and what is in flight beside it."""
    leaf = int(_FLOAT32) * max(math.prod(shape) for shape in parameter_shapes(model).values())
    return leaf + IN_FLIGHT_BYTES


def saving_bytes(recipe: Recipe, levers: Levers) -> int:
    """Host memory of a save beside the state, on each machine.

    It is the copy that is written: each of several machines writes its own part. A streamed save has
    buffers instead. Beside them are the quantized weights of several devices, which are made dense at once.
    """
    copy = checkpoint_bytes(recipe) // levers.hosts
    if levers.save == "async":
        return copy
    total, trained = counted(recipe.model, recipe.train.trained)
    dense = levers.devices > 1 and recipe.train.frozen != "bfloat16" and recipe.train.save == "all"
    return min(copy, STREAMED_HOST_BYTES) + (2 * (total - trained) if dense else 0)


def breakdown(recipe: Recipe, levers: Levers, device_bytes: int, activations: int | None) -> dict[str, int]:
    """The parts of `device_bytes` of the compiled step; they add up to it.

    The state and the gradients are counted (parameters x type). `activations` is how much the compiler's
    figure grows with the microbatch, if two microbatches are known. The rest is the step's workspace.
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
        return parts | {REST: rest}
    return parts | {ACTIVATIONS: activations, "workspace": rest - activations}
