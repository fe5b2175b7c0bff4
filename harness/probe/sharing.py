"""Who computes on a card, as NVML reports it, and whether its compute mode lets another process do so.

Source: NVIDIA, NVML API Reference, "nvmlComputeMode_t"; nvidia-smi(1), "Compute Mode".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.artifacts import GpuProcess

if TYPE_CHECKING:
    from harness.probe.nvml import Asker


def closed(asker: Asker, handle: Any, index: int) -> tuple[str | None, str | None]:
    """(why the card's compute mode lets no process of ours compute on it, what to do); nothing if it does.

    A card or driver that does not tell its mode is taken as open, as it is sold.
    """
    nvml, told = asker.nvml, dict(asker.unknown)
    mode = asker.ask("compute_mode", nvml.nvmlDeviceGetComputeMode, handle)
    exclusive = mode in (nvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD, nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)
    there = asker.ask("compute_mode", running, nvml, "Compute", handle) if exclusive else None
    asker.unknown = told
    opens = f"sudo nvidia-smi -i {index} -c 0 on the host"
    if mode == nvml.NVML_COMPUTEMODE_PROHIBITED:
        return "its compute mode is PROHIBITED, so no process may compute on it", opens
    if there:
        return (
            f"process {there[0].pid} has it for itself: its compute mode is EXCLUSIVE_PROCESS",
            f"wait for that process, or {opens} (several processes may then compute)",
        )
    # A card may be lost at this question as at any other.
    return asker.error, asker.fix


def processes_on(asker: Asker, handle: Any, hidden: str | None) -> list[GpuProcess] | None:
    """Processes on the GPU, each once, sorted by pid; None if they cannot be seen.

    In a container NVML answers with an empty list, whatever runs outside.
    """
    nvml = asker.nvml
    compute = asker.ask("foreign_processes", running, nvml, "Compute", handle)
    if compute is None:
        return None
    graphics = asker.ask("foreign_processes", running, nvml, "Graphics", handle)
    found = {process.pid: process for process in [*compute, *(graphics or [])]}
    if graphics is None:
        if not found:
            return None
        asker.unknown["foreign_processes"] = (
            f"graphics processes are missing ({asker.unknown['foreign_processes']})"
        )
    if not found and hidden:
        asker.unknown["foreign_processes"] = hidden
        return None
    processes = [
        GpuProcess(pid=pid, name=_process_name(nvml, pid), used_bytes=found[pid].usedGpuMemory)
        for pid in sorted(found)
    ]
    if any(process.name is None for process in processes):
        asker.unknown["foreign_processes.name"] = (
            "NVML does not tell the name of each process to this user, or in this container"
        )
    if any(process.used_bytes is None for process in processes):
        asker.unknown["foreign_processes.used_bytes"] = (
            "NVML does not tell the memory of each process here (this is so under WSL2)"
        )
    return processes


def running(nvml: Any, kind: str, handle: Any) -> list[Any]:
    """The processes on a card of one `kind`, "Compute" or "Graphics", as NVML gives them."""
    newest, older = (
        getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}") for version in ("_v3", "_v2")
    )
    try:
        processes: list[Any] = newest(handle)
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        processes = older(handle)
    return processes


def _process_name(nvml: Any, pid: int) -> str | None:
    try:
        name: str = nvml.nvmlSystemGetProcessName(pid)
    except (nvml.NVMLError, UnicodeDecodeError):
        return None
    return name.strip() or None
