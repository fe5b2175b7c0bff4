"""machine.json: the findings of `probe`."""

from __future__ import annotations

from typing import ClassVar

from harness.artifacts.base import Artifact
from harness.strict import Strict


class GpuProcess(Strict):
    pid: int
    name: str | None = None
    used_bytes: int | None = None


class MigDevice(Strict):
    """One MIG instance. CUDA sees it as a device of its own."""

    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    visible: bool = True
    unknown: dict[str, str] = {}


class Gpu(Strict):
    """One GPU as NVML sees it, before JAX starts.

    If `error` is set, it says why the GPU cannot be used, and `fix` what to do. Older files have both in
    `error`.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    mig_mode: bool | None = None
    mig_devices: list[MigDevice] = []
    display_active: bool | None = None
    integrated: bool | None = None
    visible: bool = True
    foreign_processes: list[GpuProcess] | None = None
    error: str | None = None
    fix: str | None = None
    unknown: dict[str, str] = {}


class Disk(Strict):
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    writable: bool | None = None
    unknown: dict[str, str] = {}


class Host(Strict):
    """The host. RAM, swap and cores are what this process may use: the cgroup's limits if there are any.

    `container` is a kind, or "none".

    `processor` is its model and its vector extensions: XLA compiles for these.
    """

    hostname: str | None = None
    kernel: str | None = None
    processor: str | None = None
    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    swap_bytes: int | None = None
    shm_bytes: int | None = None
    cores: float | None = None
    wsl: bool | None = None
    container: str | None = None
    disks: list[Disk] = []
    unknown: dict[str, str] = {}


class Machine(Artifact):
    """The machine and its GPUs.

    `gpu_error` is the reason why no GPU can be used, `gpu_fix` the remedy. With `gpu_missing` the machine may
    have no GPU at all.
    """

    FILE: ClassVar[str] = "machine.json"
    gpus: list[Gpu] = []
    gpu_error: str | None = None
    gpu_fix: str | None = None
    gpu_missing: bool = False
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    visible_devices: str | None = None
    host: Host
    unknown: dict[str, str] = {}

    @property
    def usable_gpus(self) -> list[Gpu]:
        """The GPUs that CUDA offers to this process, without broken ones."""
        return [gpu for gpu in self.gpus if gpu.visible and not gpu.error]
