"""Reports which processes hold the memory of the cards that a plan wants."""

from __future__ import annotations

from harness.artifacts import Gpu, Machine
from harness.units import GIB, format_bytes

# A desktop or an idle driver holds less than this.
NOTEWORTHY_BYTES = 2 * GIB


def holders(machine: Machine) -> str:
    """A sentence for each visible card of which others hold much memory; empty if there is none."""
    return "; ".join(_sentence(gpu) for gpu in machine.usable_gpus if _held(gpu) > NOTEWORTHY_BYTES)


def idle(machine: Machine) -> Machine:
    """The same machine with no other process on its cards."""
    gpus = [
        (
            gpu
            if gpu.total_bytes is None
            else gpu.model_copy(update={"free_bytes": gpu.total_bytes - (gpu.reserved_bytes or 0)})
        )
        for gpu in machine.gpus
    ]
    return machine.model_copy(update={"gpus": gpus})


def _held(gpu: Gpu) -> int:
    if gpu.total_bytes is None or gpu.free_bytes is None:
        return 0
    return gpu.total_bytes - (gpu.reserved_bytes or 0) - gpu.free_bytes


def _sentence(gpu: Gpu) -> str:
    names = [
        f"{process.name or 'a process'} (pid {process.pid}) {format_bytes(process.used_bytes)}"
        for process in gpu.foreign_processes or []
    ]
    why = (
        gpu.unknown.get("foreign_processes")
        or gpu.unknown.get("foreign_processes.used_bytes")
        or "NVML lists no process"
    )
    return f"GPU {gpu.index} ({gpu.name}): {format_bytes(_held(gpu))} are held by " + (
        ", ".join(names) if names else f"others that are not visible ({why})"
    )
