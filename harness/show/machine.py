"""The machine as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts import Gpu, Machine
from harness.run.cuda import card_fix, cuda_here, knows, numbers
from harness.show.rows import known, rows_table
from harness.units import format_bytes


def machine_table(machine: Machine) -> Group:
    """The GPUs and the host."""
    host = machine.host
    rows = []
    for gpu in machine.gpus:
        hidden = "" if gpu.visible else ", hidden by CUDA_VISIBLE_DEVICES"
        free = f"{format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}"
        if gpu.integrated:
            free = "its memory is the host's"
        rows.append(
            (
                f"GPU {gpu.index}",
                "; ".join(filter(None, (gpu.error, gpu.fix)))
                or f"{gpu.name} (compute capability {gpu.compute_capability}), {free}{hidden}",
            )
        )
        rows += _too_new(machine, gpu)
        rows += [
            ("", f"  process {process.pid} {process.name or ''} holds {format_bytes(process.used_bytes)}")
            for process in gpu.foreign_processes or []
        ]
    if not machine.gpus:
        rows.append(("GPU", machine.gpu_error or "none"))
    if machine.gpu_fix:
        rows.append(("what to do", machine.gpu_fix))
    rows.append(("driver", known(machine.driver_version, machine.unknown, "driver_version")))
    rows.append(
        (
            "memory",
            f"{format_bytes(host.ram_available_bytes)} available of {format_bytes(host.ram_total_bytes)}",
        )
    )
    rows.append(("cores", known(host.cores, host.unknown, "cores")))
    rows.append(("/dev/shm", format_bytes(host.shm_bytes)))
    rows += [
        (
            f"disk {disk.path}",
            f"{format_bytes(disk.free_bytes)} free" + ("" if disk.writable else ", not writable"),
        )
        for disk in host.disks
    ]
    rows.append(("container", f"{host.container or 'unknown'}" + (", WSL2" if host.wsl else "")))
    return rows_table("machine", rows)


def _too_new(machine: Machine, gpu: Gpu) -> list[tuple[str, str]]:
    """What to do about a card that the CUDA here makes no code for, if another CUDA does."""
    cuda, capability = cuda_here(), numbers(gpu.compute_capability)
    fix = None if knows(cuda, capability) else card_fix(numbers(machine.driver_version), capability)
    return [] if fix is None or gpu.error else [("", f"  CUDA {cuda} makes no code for it: {fix}")]
