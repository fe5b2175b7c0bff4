"""Counts memory on machines where CPU and GPU share one pool (GB10, Jetson).

A phase takes its device part and its host part from the same pool. There is no second memory: a save's copy
of the state lies beside the state itself, and no part of the state is moved to the host. Grace-Hopper is not
such a machine: its GPU has memory of its own, and NVML reports it.
"""

from __future__ import annotations

from harness.artifacts import Candidate, Levers
from harness.plan import memory
from harness.plan.need import Need
from harness.plan.place import Place
from harness.recipe.schema import Recipe
from harness.units import format_bytes


def save_bytes(recipe: Recipe, levers: Levers) -> int:
    """Bytes of the pool while a checkpoint is saved, counted without a compiler.

    They are the state, what the save takes beside it, and the process.
    """
    parts = memory.state_parts(recipe, levers)
    return parts["weights"] + parts["moments"] + parts["ema"] + host_bytes(recipe, levers)


def host_bytes(recipe: Recipe, levers: Levers) -> int:
    """The host's part of the pool during a save. What the reader of weights holds is the phase load's."""
    return memory.PROCESS_BYTES + memory.pinned_bytes(recipe, levers) + memory.saving_bytes(recipe, levers)


def phases(recipe: Recipe, levers: Levers, need: Need) -> dict[str, int]:
    """Bytes of the pool in each phase: the device's and the host's.

    The device's come from the compiler if it was asked. A save is always among the phases.
    """
    beside = {
        "load": memory.reading_bytes(recipe.model),
        "save": memory.saving_bytes(recipe, levers),
    }
    held = memory.PROCESS_BYTES + memory.pinned_bytes(recipe, levers)
    device = need.phases or {"step": need.device_bytes}
    found = {phase: size + held + beside.get(phase, 0) for phase, size in device.items()}
    return {"save": save_bytes(recipe, levers)} | found


def short(found: dict[str, int], pool: int | None) -> str | None:
    """Why the phases are too much for the pool, or None."""
    worst = max(found, key=lambda phase: found[phase])
    if pool is None or found[worst] <= pool:
        return None
    too_much = f"{format_bytes(found[worst] - pool)} too much"
    return (
        f"needs {format_bytes(found[worst])} in the phase {worst} of {format_bytes(pool)} usable by CPU and"
        f" GPU together: {too_much}"
    )


def enough(found: dict[str, int], pool: int | None) -> str:
    """A sentence on the most that a phase needs of the pool."""
    worst = max(found, key=lambda phase: found[phase])
    usable = f"{format_bytes(pool)} usable" if pool is not None else "a pool that is not known"
    return f"needs {format_bytes(found[worst])} in the phase {worst} of {usable} by CPU and GPU together"


def memory_fraction(place: Place, chosen: Candidate | None) -> float | None:
    """The share of the device's memory that JAX takes at once for the chosen plan."""
    if chosen is None or not place.shared:
        return place.memory_fraction
    return place.fraction_beside(chosen.host_bytes or 0, chosen.device_bytes or 0)


def kept(chosen: Candidate, pool: int | None) -> list[str]:
    """A note if each phase fits alone, but JAX's memory does not fit beside the host's part of a save.

    JAX keeps the memory that it took for the largest phase.
    Source: JAX documentation, "GPU memory allocation": memory that was taken is not given back, except by the
    allocator `platform`.
    """
    device, host = chosen.device_bytes or 0, chosen.host_bytes or 0
    if pool is None or device + host <= pool:
        return []
    both = (
        f"{format_bytes(device)} of the step beside {format_bytes(host)} of the host,"
        f" {format_bytes(device + host)}"
    )
    return [
        f"JAX keeps what a step took while it saves: {both}; XLA_PYTHON_CLIENT_ALLOCATOR=platform gives it"
        " back between the phases, and is slower"
    ]
