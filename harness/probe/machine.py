"""The machine as one artifact: the GPUs by NVML, the host by /proc and cgroups. No JAX, and nothing is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from harness.artifacts import Gpu, Host, Machine
from harness.probe import host as host_probe
from harness.probe import nvml
from harness.probe.visible import index_order_is_uncertain, mark_visible


def probe(paths: list[Path]) -> Machine:
    """What this machine has; `paths` are the directories whose disks a run will fill (they need not exist yet)."""
    host = host_probe.read(paths)
    reading = nvml.read(processes_hidden=_processes_hidden(host))
    setting, order = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER")
    unknown = dict(reading.unknown)
    uncertain = index_order_is_uncertain(reading.gpus, setting, order)
    if uncertain:
        unknown["visible_devices"] = uncertain
    return Machine(
        gpus=mark_visible(reading.gpus, setting),
        gpu_error=reading.gpu_error,
        driver_version=reading.driver_version,
        cuda_driver_version=reading.cuda_driver_version,
        visible_devices=setting,
        host=host,
        unknown=unknown,
    )


def _processes_hidden(host: Host) -> str | None:
    if host.wsl:
        return "under WSL2 NVML does not list the processes of Windows"
    if host.container not in (None, "none"):
        return f"this is a container ({host.container}): NVML does not list processes outside of it"
    return None


def usable_gpus(machine: Machine) -> list[Gpu]:
    """The GPUs that CUDA will offer to this process, without those that are broken."""
    return [gpu for gpu in machine.gpus if gpu.visible and not gpu.error]
