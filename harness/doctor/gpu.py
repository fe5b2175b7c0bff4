"""Checks of GPU and driver, from what NVML said before JAX was started, and from JAX itself in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

from harness.artifacts import Gpu
from harness.artifacts.doctor import Finding
from harness.doctor.situation import Situation, error, unknown, warning
from harness.units import format_bytes

# Source: JAX docs/installation.md, "NVIDIA GPU" (driver for CUDA 12 on Linux; compute capability 5.2 or newer).
_DRIVER = (525, 60, 13)
_CAPABILITY = (5, 2)
# The first capability with bfloat16 arithmetic. Source: CUDA C++ Programming Guide, "Compute Capabilities".
_BFLOAT16 = (8, 0)
# Code for Blackwell is in CUDA 12.8 and newer, whose driver is of the 570 branch. Source: CUDA Toolkit 12.8 release notes.
_BLACKWELL, _BLACKWELL_DRIVER = (10, 0), (570,)
_JAX_TIMEOUT_S = 90
_LIST_DEVICES = "import json, jax; print(json.dumps([[d.device_kind, d.platform] for d in jax.local_devices()]))"


def driver(situation: Situation) -> Iterator[Finding]:
    """The driver is new enough for the CUDA that the wheels bring."""
    machine = situation.machine
    if not situation.on_gpu:
        return
    if machine.driver_version is None:
        yield unknown("driver", machine.unknown.get("driver_version") or machine.gpu_error or "NVML does not tell", "an NVIDIA driver", "nvidia-smi")
        return
    version = _numbers(machine.driver_version)
    if version < _DRIVER:
        need = ".".join(map(str, _DRIVER))
        yield error("driver", machine.driver_version, f"{need} or newer, for CUDA 12", "install a newer NVIDIA driver on the host (not in the container)")
    for gpu in _visible(situation):
        capability = _numbers(gpu.compute_capability or "")
        if capability >= _BLACKWELL and version < _BLACKWELL_DRIVER:
            yield error("driver", f"{machine.driver_version} with {gpu.name}", "570 or newer for Blackwell", "install a newer NVIDIA driver on the host")


def capability(situation: Situation) -> Iterator[Finding]:
    """The wheels hold code for this GPU, and it computes in bfloat16."""
    for gpu in _visible(situation):
        if gpu.compute_capability is None:
            yield unknown("compute capability", gpu.unknown.get("compute_capability", "NVML does not tell"), "5.2 or newer", "harness probe")
            continue
        version = _numbers(gpu.compute_capability)
        if version < _CAPABILITY:
            yield error("compute capability", f"{gpu.compute_capability} ({gpu.name})", "5.2 or newer", "use another GPU: CUDA_VISIBLE_DEVICES=UUID")
        elif version < _BFLOAT16:
            yield warning(
                "compute capability",
                f"{gpu.compute_capability} ({gpu.name}) has no bfloat16 arithmetic",
                "8.0 or newer for full speed",
                "expect it to be many times slower, or use another GPU: CUDA_VISIBLE_DEVICES=UUID",
            )


def visible(situation: Situation) -> Iterator[Finding]:
    """What NVML sees, JAX sees too; asked in a child process, so that this one holds no GPU memory."""
    machine = situation.machine
    if situation.on_gpu and not _visible(situation):
        yield error("GPU", machine.gpu_error or "no GPU that can be used", "a GPU that NVML lists", "harness probe; in compose: service train, not smoke")
        return
    broken = [gpu for gpu in machine.gpus if gpu.error]
    for gpu in broken:
        yield warning("GPU", f"GPU {gpu.index}: {gpu.error}", "a GPU that answers", "nvidia-smi; a lost GPU comes back after a reboot")
    if not situation.on_gpu:
        return
    environment = dict(situation.environ) | {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [situation.python, "-c", _LIST_DEVICES]
    child = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=_JAX_TIMEOUT_S, check=False, cwd=os.sep)
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        fix = "unset LD_LIBRARY_PATH (it hides the CUDA libraries of the wheels); rebuild the image: docker compose build train"
        yield error("JAX", last[:300], "JAX to start on the GPU that NVML sees", fix)
        return
    seen = len(json.loads(child.stdout.strip().splitlines()[-1]))
    expected = sum(len(gpu.mig_devices) or 1 for gpu in _visible(situation))
    if seen < expected:
        yield warning("JAX", f"{seen} devices", f"{expected}, as NVML sees them", "unset CUDA_VISIBLE_DEVICES, or name the devices that you want by uuid")


def memory(situation: Situation) -> Iterator[Finding]:
    """The plan fits the free bytes of this moment, and nobody else is about to take them."""
    plan = situation.plan
    if plan is not None and plan.chosen is None:
        best = min((candidate.device_bytes for candidate in plan.candidates if candidate.device_bytes is not None), default=None)
        got = f"{format_bytes(plan.usable_bytes)} usable on {plan.device}; the smallest plan needs {format_bytes(best)}"
        yield error("device memory", got, "a plan that fits", "harness plan (what was rejected, and why); --recipe pi05_libero_lora trains less")
    for gpu in _visible(situation):
        for process in gpu.foreign_processes or []:
            yield warning(
                "device memory",
                f"process {process.pid} {process.name or ''} holds {format_bytes(process.used_bytes)} of GPU {gpu.index}",
                "a GPU of its own: what another process takes during the run is lacking then",
                "stop it, or use another GPU: CUDA_VISIBLE_DEVICES=UUID",
            )
    if situation.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        # Source: JAX documentation, "GPU memory allocation": very slow, not for general use.
        yield warning("device memory", "XLA_PYTHON_CLIENT_ALLOCATOR=platform", "JAX's own pool", "unset XLA_PYTHON_CLIENT_ALLOCATOR: it is many times slower")


def wsl(situation: Situation) -> Iterator[Finding]:
    """Under WSL2 the driver may spill to system memory instead of failing, 50 to 100 times slower, and without an error."""
    if situation.machine.host.wsl and situation.on_gpu:
        yield warning(
            "WSL2",
            "a kernel of WSL2, where Windows decides whether a full GPU fails or spills into system memory; Linux cannot read the setting",
            "no spilling: a step would take minutes",
            "on Windows: NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback",
        )


def _visible(situation: Situation) -> list[Gpu]:
    return [gpu for gpu in situation.machine.gpus if gpu.visible and not gpu.error]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
