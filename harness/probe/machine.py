"""The machine as one artifact: the GPUs from NVML, the host from /proc and cgroups.

Uses no JAX, and allocates no device memory.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.artifacts import Gpu, Host, Machine
from harness.probe import host as host_probe
from harness.probe import nvml
from harness.probe.visible import index_order_is_uncertain, mark_visible


def probe(paths: list[Path]) -> Machine:
    """The GPUs and the host of this machine.

    `paths` are the directories whose disks a run will fill. They need not exist yet.
    """
    host = host_probe.read(paths)
    reading = nvml.read(processes_hidden=_processes_hidden(host))
    setting, order = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER")
    unknown = dict(reading.unknown)
    uncertain = index_order_is_uncertain(reading.gpus, setting, order)
    if uncertain:
        unknown["visible_devices"] = uncertain
    gpus = mark_visible(reading.gpus, setting)
    none = {"gpu_error": reading.gpu_error, "gpu_fix": reading.gpu_fix} | _hidden(gpus, setting)
    return Machine(
        gpus=gpus,
        **none,
        gpu_missing=reading.gpu_missing,
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


def _hidden(gpus: list[Gpu], setting: str | None) -> dict[str, str]:
    """The error fields when CUDA_VISIBLE_DEVICES hides every working GPU; empty otherwise."""
    whole = [gpu for gpu in gpus if not gpu.error]
    if setting is None or not whole or any(gpu.visible for gpu in whole):
        return {}
    listed = ", ".join(f"{gpu.index}: {gpu.name or 'a GPU'}" for gpu in whole)
    what = f"CUDA_VISIBLE_DEVICES={setting} hides every usable GPU of this machine ({listed})"
    return {
        "gpu_error": what,
        "gpu_fix": f"unset CUDA_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES={whole[0].index}",
    }
