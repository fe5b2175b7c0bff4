"""GPUs as NVML reports them, before and without JAX.

This module, `readings` and `sharing` are the only ones that use pynvml. NVML is open only inside `read`.

An answer that NVML refuses, or that contradicts itself, is None with a reason. One broken GPU does not hide
the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from harness.artifacts import Gpu, MigDevice
from harness.probe.nvml_errors import ERRORS, explained
from harness.probe.sharing import closed, processes_on
from harness.run.cuda import cuda_here, driver_fix, drives, numbers

T = TypeVar("T")

# NVML_ERROR_GPU_NOT_FOUND. Newer libraries return it on a machine without a card; older ones count no card.
_NOT_FOUND = 28

# Compute capabilities of GPUs that share the host's memory: Tegra X1, X2, Xavier, Orin, Thor (two numbers),
# GB10.
# Source: NVIDIA, "CUDA GPU Compute Capability", Jetson and DGX Spark rows.
INTEGRATED = {"5.3", "6.2", "7.2", "8.7", "10.1", "11.0", "12.1"}

ARCHITECTURES: dict[int | None, str] = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada",
    9: "Hopper",
    10: "Blackwell",
    13: "Rubin",
}


class Reading(NamedTuple):
    """NVML's answers.

    `gpu_error` describes an error, and `gpu_fix` its fix. `gpu_missing`: there may be no GPU in this machine.

    The GPUs are listed even if the driver is too old to use them.
    """

    gpus: list[Gpu]
    gpu_error: str | None = None
    gpu_fix: str | None = None
    gpu_missing: bool = False
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    unknown: dict[str, str] = {}


def read(*, processes_hidden: str | None = None) -> Reading:
    """All GPUs of the machine, in NVML's (PCI bus) order.

    `processes_hidden` is the reason why other processes cannot be seen from here (a container's own process
    namespace). An empty process list then proves nothing, and is reported as unknown.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        refused = explained(error)
        return Reading(
            [], *refused, unknown=dict.fromkeys(("driver_version", "cuda_driver_version"), refused.got)
        )
    try:
        return _read(pynvml, processes_hidden)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read(nvml: Any, processes_hidden: str | None) -> Reading:
    system = Asker(nvml)
    driver = system.text("driver_version", nvml.nvmlSystemGetDriverVersion)
    cuda = system.ask("cuda_driver_version", _cuda_driver_version, nvml)
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as refusal:
        return Reading([], *explained(refusal), driver, cuda, system.unknown)
    if not count:
        none = "the NVIDIA driver runs, but reports no GPU"
        return Reading([], none, ERRORS[_NOT_FOUND].fix, True, driver, cuda, system.unknown)
    gpus = [_gpu(nvml, index, processes_hidden) for index in range(count)]
    error, fix = _too_old(driver)
    if error:
        gpus = [gpu if gpu.error else gpu.model_copy(update={"error": error, "fix": fix}) for gpu in gpus]
    elif all(gpu.error for gpu in gpus):
        error, fix = gpus[0].error, gpus[0].fix
    return Reading(gpus, error, fix, driver_version=driver, cuda_driver_version=cuda, unknown=system.unknown)


def _cuda_driver_version(nvml: Any) -> str | None:
    version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return f"{version // 1000}.{version % 1000 // 10}" if version > 0 else None


def _too_old(driver: str | None) -> tuple[str | None, str | None]:
    """(what is wrong with the driver, what to do); nothing for one that is new enough or not known."""
    told, cuda = numbers(driver), cuda_here()
    if not told or drives(told, cuda):
        return None, None
    return f"the NVIDIA driver {driver} is too old for CUDA {cuda}", driver_fix(cuda, told)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)


class Asker:
    """Queries to NVML about one device. A refused answer is None, and `unknown` holds the reason.

    After `lost` is set, no more queries are sent. `error` names the loss and its cause, `fix` what to do.
    """

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.unknown: dict[str, str] = {}
        self.lost: str | None = None
        self.error: str | None = None
        self.fix: str | None = None

    def ask(self, field: str, function: Callable[..., T], *args: Any) -> T | None:
        if self.lost:
            self.unknown[field] = self.lost
            return None
        try:
            answer = function(*args)
        except self.nvml.NVMLError as error:
            self.unknown[field] = f"NVML: {error}"
            if error.value in (self.nvml.NVML_ERROR_GPU_IS_LOST, self.nvml.NVML_ERROR_RESET_REQUIRED):
                self.lost = f"the GPU does not answer (NVML: {error})"
                self.unknown[field] = self.lost
                self.error, self.fix, _ = explained(error)
            return None
        except UnicodeDecodeError:
            self.unknown[field] = "NVML gave text that cannot be decoded"
            return None
        if answer is None:
            self.unknown[field] = "NVML gave an empty answer"
        return answer

    def text(self, field: str, function: Callable[..., str], *args: Any) -> str | None:
        return self.ask(field, lambda: function(*args).strip() or None)

    def flag(self, field: str, function: Callable[..., int], *args: Any) -> bool | None:
        answer = self.ask(field, function, *args)
        return None if answer is None else bool(answer)


def _gpu(nvml: Any, index: int, processes_hidden: str | None) -> Gpu:
    asker = Asker(nvml)
    handle = asker.ask("handle", _opened, asker, index)
    asker.unknown.pop("handle", None)
    # The name and uuid come first: a person needs them most if the card fails during the queries.
    name = asker.text("name", nvml.nvmlDeviceGetName, handle)
    uuid = asker.text("uuid", nvml.nvmlDeviceGetUUID, handle)
    number = asker.ask("architecture", nvml.nvmlDeviceGetArchitecture, handle)
    if number is not None and number not in ARCHITECTURES:
        asker.unknown["architecture"] = f"NVML's architecture number {number} is newer than this harness"
    capability = asker.ask(
        "compute_capability", lambda: _dotted(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    )
    if capability is None:
        asker.unknown["integrated"] = (
            asker.lost or "NVML tells it only through the compute capability, which is unknown"
        )
    integrated = None if capability is None else capability in INTEGRATED
    total, free, reserved = memory_of(asker, handle, shared=bool(integrated))
    mig = asker.flag("mig_mode", lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    instances = _mig_devices(asker, handle) if mig else []
    if mig and not instances and not asker.error:
        asker.error, asker.fix = _no_instance(index, asker)
    if not asker.error:
        asker.error, asker.fix = closed(asker, handle, index)
    return Gpu(
        index=index,
        name=name,
        uuid=uuid,
        architecture=ARCHITECTURES.get(number),
        compute_capability=capability,
        total_bytes=total,
        free_bytes=free,
        reserved_bytes=reserved,
        mig_mode=mig,
        mig_devices=instances,
        display_active=asker.flag("display_active", nvml.nvmlDeviceGetDisplayActive, handle),
        integrated=integrated,
        foreign_processes=processes_on(asker, handle, processes_hidden),
        error=asker.error,
        fix=asker.fix,
        unknown=asker.unknown,
    )


def _no_instance(index: int, asker: Asker) -> tuple[str, str]:
    """(why CUDA offers no device of a card whose MIG mode is on, what to do)."""
    why = asker.unknown.get("mig_devices")
    what = f"and its instances cannot be listed ({why})" if why else "and no instance has been made"
    makes, off = (
        f"nvidia-smi mig -i {index} -cgi 0 -C makes one",
        f"nvidia-smi -i {index} -mig 0 turns MIG off",
    )
    return f"MIG is on {what}", f"on the host: {makes}, {off}"


def _opened(asker: Asker, index: int) -> Any:
    try:
        return asker.nvml.nvmlDeviceGetHandleByIndex(index)
    except asker.nvml.NVMLError as error:
        refused = explained(error)
        asker.lost = f"the GPU cannot be opened (NVML: {error})"
        asker.error, asker.fix = f"the GPU cannot be opened: {refused.got}", refused.fix
        raise


def memory_of(
    asker: Asker, handle: Any, *, shared: bool = False
) -> tuple[int | None, int | None, int | None]:
    """Total, free and reserved bytes.

    Each is None, with a reason, if NVML gives none or contradicts itself.
    """
    info = asker.ask("total_bytes", _memory_info, asker.nvml, handle)
    if info is None:
        reason = asker.unknown["total_bytes"]
        if shared and not asker.lost:
            reason = f"the GPU shares the host's memory, see host.ram_available_bytes ({reason})"
        asker.unknown |= dict.fromkeys(("total_bytes", "free_bytes", "reserved_bytes"), reason)
        return None, None, None
    total, free, reserved = info
    wrong = None
    if total == 0:
        wrong = "NVML says that the GPU has 0 bytes of memory"
    elif free > total:
        wrong = f"NVML contradicts itself: {free} bytes free of {total}"
    elif reserved is not None and reserved > total:
        wrong = f"NVML contradicts itself: {reserved} bytes reserved of {total}"
    if wrong:
        asker.unknown |= dict.fromkeys(("total_bytes", "free_bytes", "reserved_bytes"), wrong)
        return None, None, None
    if reserved is None:
        asker.unknown["reserved_bytes"] = (
            "this driver counts reserved memory as used (it lacks nvmlDeviceGetMemoryInfo_v2)"
        )
    return total, free, reserved


def _memory_info(nvml: Any, handle: Any) -> tuple[int, int, int | None]:
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        return info.total, info.free, info.reserved
    except nvml.NVMLError as error:
        if error.value not in (nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
            raise
    info = nvml.nvmlDeviceGetMemoryInfo(handle)
    return info.total, info.free, None


def _mig_devices(asker: Asker, handle: Any) -> list[MigDevice]:
    nvml = asker.nvml
    slots = asker.ask("mig_devices", nvml.nvmlDeviceGetMaxMigDeviceCount, handle)
    found = []
    for slot in range(slots or 0):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except nvml.NVMLError as error:
            # An empty slot is normal. Any other error means that an instance may be missing from the list.
            if error.value != nvml.NVML_ERROR_NOT_FOUND:
                asker.unknown["mig_devices"] = f"slot {slot}: NVML: {error}"
            continue
        own = Asker(nvml)
        name = own.text("name", nvml.nvmlDeviceGetName, mig)
        uuid = own.text("uuid", nvml.nvmlDeviceGetUUID, mig)
        total, free, reserved = memory_of(own, mig)
        found.append(
            MigDevice(
                uuid=uuid,
                name=name,
                total_bytes=total,
                free_bytes=free,
                reserved_bytes=reserved,
                unknown=own.unknown,
            )
        )
    return found
