"""Memory that a run needs outside its step: to initialize, to load weights, to save.

A phase with a program is compiled. A phase without a program is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from harness.checkpoint.leaves import IN_FLIGHT_BYTES
from harness.train.compiled import device_bytes
from harness.train.copies import copier
from harness.train.host import PINNED
from harness.train.setup import Setup
from harness.train.snapshot import saved
from harness.train.start import initializer, optimizer_starter

Phase = Literal["init", "load", "save"]
# Released weights are float32.
_STORED_ITEMSIZE = 4


class CompiledPhase(NamedTuple):
    """Memory of one phase of a run.

    `bytes` are those of one device: argument, output, alias, temp, device (the sum of the others, less
    alias). Host and disk bytes are those of the whole machine.
    """

    bytes: dict[str, int]
    host_bytes: int
    disk_bytes: int


def compile_phase(
    setup: Setup, phase: Phase, *, options: dict[str, str] | None = None, platform: str | None = None
) -> CompiledPhase:
    """Memory that `phase` of a run needs, over the devices of the setup's layout.

    These devices need not be on this machine.

    - init: random parameters and the state around them, or then the copies beside it, whichever needs more.
    - load: the state around parameters that were read leaf by leaf into their shards, with the bytes that the
      reader holds. Disk is the download's.
    - save: the state and its copy on the host, which Orbax takes whole before it writes. Disk is one
      checkpoint's, before compression.
    """

    def compiled(traced: Any) -> dict[str, int]:
        lowered = traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
        return device_bytes(lowered.compile(compiler_options=options).memory_analysis())

    if phase == "save":
        return _save(setup)
    if phase == "load":
        return _load(setup, compiled(optimizer_starter(setup).trace()))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = compiled(
        initializer(setup).trace(jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=setup.layout.replicated))
    )
    if setup.shapes.state.copies:
        found = max(found, _copying(setup, compiled), key=lambda sizes: sizes["device"])
    return CompiledPhase(found, 0, 0)


def _copying(setup: Setup, compiled: Callable[[Any], dict[str, int]]) -> dict[str, int]:
    """Memory of the program that makes the copies, with all of the state that is there by then."""
    layout, state = setup.layout, setup.shapes.state
    masters = layout.structs({"trained": state.trained})["trained"]
    sizes = compiled(copier(state.copies, layout).trace({path: masters[path] for path in state.copies}))
    held = state._replace(copies={})
    rest = sum(_parts(held, layout.of(held)))
    return sizes | {name: sizes[name] + rest for name in ("argument", "device")}


def _load(setup: Setup, moments: dict[str, int]) -> CompiledPhase:
    """Memory of parameters and average, added to `moments`, the memory of the optimizer's initialization."""
    layout, (params, state) = setup.layout, setup.shapes
    trained = {path: _device_bytes(x, layout.leaf(path, x.shape)) for path, x in state.trained.items()}
    resident = sum(trained.values()) + sum(_parts(state.frozen, layout.of(state.frozen)))
    ema = sum(_parts({"ema": state.ema}, layout.of({"ema": state.ema})))
    # On its way to the host one leaf is on the device twice. A frozen leaf is whole for a moment while it is
    # quantized. Copies are made when the parameters have left, and take no more than these did.
    passing = max(trained.values()) if layout.host else 0
    dense = max(
        (_device_bytes(x, layout.leaf(path, x.shape)) for path, x in params.items() if path in state.frozen),
        default=0,
    )
    temp = max(moments["temp"], passing, dense if setup.recipe.train.frozen != "bfloat16" else 0)
    found = {"argument": resident, "output": ema + moments["output"], "alias": 0, "temp": temp}
    sizes = [math.prod(x.shape) * max(np.dtype(x.dtype).itemsize, _STORED_ITEMSIZE) for x in params.values()]
    host, disk = (
        min(sum(sizes), max(sizes) + IN_FLIGHT_BYTES),
        sum(math.prod(x.shape) for x in params.values()) * _STORED_ITEMSIZE,
    )
    return CompiledPhase(found | {"device": sum(found.values())}, host, disk)


def _save(setup: Setup) -> CompiledPhase:
    state = setup.shapes.state
    shardings = setup.layout.of(state)
    held = sum(_parts(state, shardings))
    # If several devices hold the same part of an array, each copies a share of it to the host. It first cuts
    # the share out on the device. The copies of parameters are not saved.
    stored = state._replace(copies={}), shardings._replace(copies={})
    cut = sum(
        size // holders
        for size, holders in zip(_parts(*stored), _holders(*stored), strict=True)
        if holders > 1
    )
    whole = sum(
        math.prod(x.shape) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(saved(state, only_trained=setup.recipe.train.save == "trained"))
    )
    return CompiledPhase(
        {"argument": held, "output": 0, "alias": 0, "temp": cut, "device": held + cut}, whole, whole
    )


def _parts(tree: Any, shardings: Any) -> list[int]:
    """Bytes that each leaf takes on one device."""
    return [
        _device_bytes(x, sharding)
        for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    ]


def _device_bytes(x: Any, sharding: jax.sharding.NamedSharding) -> int:
    return (
        0
        if sharding.memory_kind == PINNED
        else math.prod(sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    )


def _holders(tree: Any, shardings: Any) -> list[int]:
    """The number of devices that hold the same part, for each leaf."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return [
        len(sharding.device_set) * math.prod(sharding.shard_shape(x.shape)) // max(math.prod(x.shape), 1)
        for x, sharding in leaves
    ]
