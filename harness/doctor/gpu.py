"""Checks of GPU and driver.

They use the figures that NVML gave before JAX started, and JAX itself in a child process.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

from harness.artifacts import Gpu, Machine, Plan
from harness.artifacts.doctor import Finding
from harness.doctor.situation import (
    NotNeeded,
    Situation,
    error,
    short_of_host,
    unknown,
    warning,
    without_plan,
)
from harness.received.text import word
from harness.run.cuda import (
    BFLOAT16,
    blackwell_waits,
    card_fix,
    cuda_here,
    driver_fix,
    drives,
    knows,
    numbers,
    oldest_driver,
    start,
)
from harness.run.xla_flags import refused_flags
from harness.units import format_bytes

_JAX_TIMEOUT_S = 90
_LIST_DEVICES = (
    "import json, jax; print(json.dumps([[d.device_kind, d.platform] for d in jax.local_devices()]))"
)
# An exception that says nothing but its name.
_BARE = ("Error", "Exception")
_NO_BACKEND = "JAX found no CUDA backend: the jax-cuda plugin is missing, or no device answers"
# What CUDA says of a card that another process has for itself, or on which none may compute.
_TAKEN = ("CUDA_ERROR_DEVICE_UNAVAILABLE", "busy or unavailable")
_ON_CPU = "the run is on the CPU"


def xla_flags(situation: Situation) -> Iterator[Finding]:
    """Checks that XLA accepts the flags of the environment.

    XLA ends the process at the first flag that it does not know.
    """
    if not situation.environ.get("XLA_FLAGS", "").strip():
        raise NotNeeded("XLA_FLAGS is not set")
    refused = refused_flags(situation.environ, situation.python)
    if refused is not None:
        yield error("XLA flags", refused.got, "flags that this XLA has", refused.fix)


def driver(situation: Situation) -> Iterator[Finding]:
    """Checks that the driver is new enough for the CUDA in the wheels."""
    machine = _machine_of_a_gpu(situation)
    if machine.driver_version is None:
        if not machine.gpus and machine.gpu_error:
            yield unknown(
                "driver",
                "NVML does not start, so no version is told",
                "an NVIDIA driver",
                "mend what the check GPU and JAX names",
            )
        else:
            why = machine.unknown.get("driver_version", "NVML does not tell")
            yield unknown("driver", f"its version is not told: {why}", "an NVIDIA driver", "nvidia-smi")
        return
    version, cuda = numbers(machine.driver_version), cuda_here()
    if not drives(version, cuda):
        yield error(
            "driver",
            machine.driver_version,
            f"{oldest_driver(cuda)} or newer, for CUDA {cuda}",
            driver_fix(cuda, version, _newest(machine)),
        )
    for gpu in situation.machine.usable_gpus:
        if blackwell_waits(version, numbers(gpu.compute_capability)):
            yield error(
                "driver",
                f"{machine.driver_version} with {gpu.name}",
                "570 or newer for Blackwell",
                "install a newer NVIDIA driver on the host",
            )


def _newest(machine: Machine) -> tuple[int, ...]:
    """The highest compute capability of the machine's cards; () if none is told."""
    return max((numbers(gpu.compute_capability) for gpu in machine.gpus), default=())


def capability(situation: Situation) -> Iterator[Finding]:
    """Checks that the GPU computes in bfloat16, and that this CUDA makes code for it.

    The plan refuses a GPU without bfloat16, and leaves it out where another is there.
    """
    _machine_of_a_gpu(situation)
    taken = situation.plan.device_uuids if situation.plan is not None else []
    if not situation.machine.usable_gpus:
        yield unknown(
            "compute capability",
            "no usable GPU to be asked",
            "8.0 or newer",
            "mend what the check GPU and JAX names",
        )
    for gpu in situation.machine.usable_gpus:
        if gpu.compute_capability is None:
            yield unknown(
                "compute capability",
                gpu.unknown.get("compute_capability", "NVML does not tell"),
                "8.0 or newer",
                "harness probe",
            )
        elif numbers(gpu.compute_capability) < BFLOAT16:
            if taken and gpu.uuid not in taken:
                continue
            got = (
                f"{gpu.compute_capability} ({gpu.name}): no bfloat16 arithmetic, in which the model is"
                " computed"
            )
            yield error("compute capability", got, "8.0 (Ampere) or newer", _another(situation.machine))
        elif not knows(cuda_here(), numbers(gpu.compute_capability)):
            yield _too_new(situation.machine, gpu)


def _too_new(machine: Machine, gpu: Gpu) -> Finding:
    """What to do about a card that is newer than the CUDA here: another CUDA, if one is known that has it."""
    cuda, capability = cuda_here(), numbers(gpu.compute_capability)
    got = f"{gpu.compute_capability} ({gpu.name}): CUDA {cuda} makes no code for it"
    fix = card_fix(numbers(machine.driver_version), capability)
    if fix is None:
        fix = f"ci/lock cuda13 --upgrade (the newest CUDA 13), then {start(13)}"
        return warning("compute capability", got, "a CUDA that knows the card", fix)
    return error("compute capability", got, "a CUDA that knows the card", fix)


def _another(machine: Machine) -> str:
    """The fix for a card that is too old: a newer card of this machine, if there is one."""
    newer = (
        gpu.uuid or str(gpu.index)
        for gpu in machine.gpus
        if not gpu.error and numbers(gpu.compute_capability) >= BFLOAT16
    )
    first = next(newer, None)
    if first is None:
        return "use another machine: no card here is newer"
    return f"use another GPU: CUDA_VISIBLE_DEVICES={word(first)}, or another machine"


def visible(situation: Situation) -> Iterator[Finding]:
    """Checks that JAX sees the GPUs that NVML sees.

    JAX is asked in a child process, so that this process holds no GPU memory.
    """
    machine = situation.machine
    for gpu in machine.gpus:
        if gpu.error and len(machine.gpus) > 1:
            fix = gpu.fix or "harness probe asks the GPU again"
            yield warning("GPU", f"GPU {gpu.index}: {gpu.error}", "a GPU that answers", fix)
    _machine_of_a_gpu(situation)
    if not situation.machine.usable_gpus:
        fix = machine.gpu_fix or "harness probe; in compose: service train, not smoke"
        yield error("GPU", machine.gpu_error or "no GPU that can be used", "a GPU that NVML lists", fix)
        return
    uncertain = machine.unknown.get("visible_devices")
    if uncertain:
        yield warning(
            "GPU",
            uncertain,
            "a card that is named without doubt",
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the card by its uuid",
        )
    yield from _jax(situation)


def _jax(situation: Situation) -> Iterator[Finding]:
    environment = dict(situation.environ) | {
        "JAX_PLATFORMS": "cuda",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **_well(situation.machine),
    }
    command = [situation.python, "-c", _LIST_DEVICES]
    child = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_JAX_TIMEOUT_S,
        check=False,
        cwd=os.sep,
    )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        # JAX asserts, without a word, that it has found a backend of the platform.
        got = _NO_BACKEND if " " not in last and last.rstrip(":").endswith(_BARE) else last[:300]
        fix = "rebuild the image: docker compose build train"
        if any(word in child.stderr for word in _TAKEN):
            fix = (
                "nvidia-smi -q -d COMPUTE shows the card's compute mode; sudo nvidia-smi -c 0 on the host"
                " lets several processes compute"
            )
        if situation.environ.get("LD_LIBRARY_PATH"):
            fix = f"unset LD_LIBRARY_PATH (it hides the CUDA libraries of the wheels); {fix}"
        yield error("JAX", got, "JAX to start on the GPU that NVML sees", fix)
        return
    seen = len(json.loads(child.stdout.strip().splitlines()[-1]))
    # Of MIG instances CUDA offers a process one, and beside it no whole GPU. Source: NVIDIA, MIG User Guide,
    # "CUDA Device Enumeration".
    usable = situation.machine.usable_gpus
    expected = 1 if any(gpu.mig_devices for gpu in usable) else len(usable)
    if seen < expected:
        yield warning(
            "JAX",
            f"{seen} devices",
            f"{expected}, as NVML sees them",
            "unset CUDA_VISIBLE_DEVICES, or name the devices that you want by uuid",
        )


def _well(machine: Machine) -> dict[str, str]:
    """The variable that shows JAX the usable GPUs alone; nothing if there are no others.

    JAX starts on every GPU that it is shown, and fails with the first that refuses it. A run is shown those
    of its plan.
    """
    usable = [gpu.uuid for gpu in machine.usable_gpus if gpu.uuid is not None]
    if not any(gpu.visible and gpu.error for gpu in machine.gpus) or len(usable) < len(machine.usable_gpus):
        return {}
    return (
        {}
        if any(gpu.mig_devices for gpu in machine.usable_gpus)
        else {"CUDA_VISIBLE_DEVICES": ",".join(usable)}
    )


def memory(situation: Situation) -> Iterator[Finding]:
    """Checks that the plan fits the free memory, and that no other process uses the GPU."""
    _machine_of_a_gpu(situation)
    plan = situation.plan
    if plan is None:
        yield without_plan("device memory", situation)
    elif plan.chosen is None and short_of_host(plan) is not None:
        yield unknown("device memory", "no plan fits", "a plan", "mend what the check host memory names")
    elif plan.chosen is None:
        yield error(
            "device memory",
            _smallest(plan),
            "a plan that fits",
            "harness plan (what was rejected, and why); --recipe pi05_libero_lora trains less",
        )
    for gpu in situation.machine.usable_gpus:
        for process in gpu.foreign_processes or []:
            yield warning(
                "device memory",
                f"process {process.pid} {process.name or ''} holds {format_bytes(process.used_bytes)} of GPU"
                f" {gpu.index}",
                "a GPU of its own: what another process takes during the run is lacking then",
                "stop it, or use another GPU: CUDA_VISIBLE_DEVICES=UUID",
            )
    if situation.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        # Source: JAX documentation, "GPU memory allocation": very slow, not for general use.
        yield warning(
            "device memory",
            "XLA_PYTHON_CLIENT_ALLOCATOR=platform",
            "JAX's own pool",
            "unset XLA_PYTHON_CLIENT_ALLOCATOR: it is many times slower",
        )


def _smallest(plan: Plan) -> str:
    """What is usable, and what the smallest of the plans needs, none of which fits."""
    usable = f"{format_bytes(plan.usable_bytes)} usable on {plan.device}"
    if plan.shared_memory:
        pools = [max(one.shared_phases.values()) for one in plan.candidates if one.shared_phases]
        return f"{usable}, host included; the smallest plan needs {format_bytes(min(pools, default=None))}"
    sizes = [one.device_bytes for one in plan.candidates if one.device_bytes is not None]
    return f"{usable}; the smallest plan needs {format_bytes(min(sizes, default=None))}"


def wsl(situation: Situation) -> Iterator[Finding]:
    """Warns under WSL2, where the driver may spill to system memory instead of failing.

    Training is then 50 to 100 times slower, without an error.
    """
    _machine_of_a_gpu(situation)
    if situation.machine.host.wsl is None:
        yield unknown(
            "WSL2", situation.machine.host.unknown.get("wsl", "not known"), "whether this is WSL2", "uname -r"
        )
    elif situation.machine.host.wsl:
        yield warning(
            "WSL2",
            "a kernel of WSL2, where Windows decides whether a full GPU fails or spills into system memory;"
            " Linux cannot read the setting",
            "no spilling: a step would take minutes",
            "on Windows: NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No"
            " Sysmem Fallback",
        )


def _machine_of_a_gpu(situation: Situation) -> Machine:
    """The machine, if the run is meant for a GPU.

    Raises: NotNeeded for a run on the CPU.
    """
    if not situation.on_gpu:
        raise NotNeeded(_ON_CPU)
    return situation.machine
