"""The card that is calibrated: which of this machine's it is, whether it is free, what is written of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from typing import NamedTuple

from harness.artifacts import Calibration, CardState, Machine
from harness.calibrate.ceilings import NOT_ALONE
from harness.calibrate.steps import own_paths
from harness.errors import HarnessError
from harness.plan.busy import NOTEWORTHY_BYTES, holders
from harness.plan.calibrated import step_sha256
from harness.plan.devices import Device, offered
from harness.probe.readings import read_state
from harness.run.cuda import cuda_plugins
from harness.run.directory import sha256_file, sha256_json
from harness.run.surroundings import jax_variables, version_of
from harness.units import GIB, MIB, format_bytes

# More of the card than at the start of a calibration is somebody else's.
_GROWN_BYTES = GIB
# A process that computes holds at least a context, so more than this; a desktop's compositor holds less.
_COMPUTING_BYTES = 512 * MIB
# NVML's figure is of the last second or so. A desktop that draws stays below.
_WORKING_PERCENT, _LOOKS, _BETWEEN_S = 20.0, 3, 0.4


class Target(NamedTuple):
    """The device, and the machine that has it."""

    device: Device
    machine: Machine

    def look(self) -> CardState:
        """The state of the card now. Of a MIG instance only what is true of the whole card."""
        state = read_state(self.device.gpu.index)
        if not self.device.mig:
            return state
        of_all = dict.fromkeys(("used_bytes", "largest_compute_bytes", "utilization_percent"), None)
        return state.model_copy(
            update={**of_all, "unknown": state.unknown | dict.fromkeys(of_all, NOT_ALONE)}
        )


def target_of(machine: Machine) -> Target:
    """The visible device with the most free memory.

    Raises: HarnessError "no-gpu", "no-target-compiler".
    """
    every, _ = offered(machine)
    if not every:
        raise HarnessError(
            "no-gpu",
            "there is no usable GPU to calibrate here",
            got=machine.gpu_error or "no GPU visible",
            need="an NVIDIA GPU (see: harness probe)",
            fix=machine.gpu_fix or "harness probe shows what is here",
        )
    if not cuda_plugins():
        raise HarnessError(
            "no-target-compiler",
            "JAX cannot compute on the GPU of this machine",
            got="no CUDA plugin of JAX",
            need="a CUDA plugin of JAX, such as jax-cuda12-plugin, of the version of jax",
            fix="docker compose run --rm train calibrate, whose image has it",
        )
    return Target(max(every, key=lambda device: device.free or 0), machine)


def check_free(target: Target, look: Callable[[], CardState], *, looks: int = _LOOKS) -> CardState:
    """The state of the card, of which others hold little, and on which nobody computes.

    Raises: HarnessError "gpu-busy".
    """
    states = [look()]
    for _ in range(looks - 1):
        time.sleep(_BETWEEN_S)
        states.append(look())
    why = _busy(target, states)
    if why:
        raise HarnessError(
            "gpu-busy",
            f"{target.device.name} is at work for others, and would be measured too slow",
            got=why,
            need="an idle card",
            fix=(
                "stop what uses it (nvidia-smi shows the processes), or name another card with"
                " CUDA_VISIBLE_DEVICES; then harness calibrate"
            ),
        )
    return states[-1]


def _busy(target: Target, states: list[CardState]) -> str:
    """Who uses the card, or nothing."""
    device = target.device
    if device.mig:
        held = (device.total or 0) - (device.free or 0)
        said = f"{format_bytes(held)} of {device.name} are held" if held > NOTEWORTHY_BYTES else ""
    else:
        said = holders(target.machine.model_copy(update={"gpus": [device.gpu]}))
    if said:
        return said
    computing = _computing(states)
    if computing:
        return computing
    told = [state.utilization_percent for state in states if state.utilization_percent is not None]
    # One look may see what has just ended.
    if told and min(told) >= _WORKING_PERCENT:
        return f"a utilization of {min(told):.0f} % with no process of ours"
    return ""


def _computing(states: list[CardState]) -> str:
    most = max((state.largest_compute_bytes or 0 for state in states), default=0)
    return f"a process that computes holds {format_bytes(most)}" if most > _COMPUTING_BYTES else ""


def not_alone(first: CardState, around: list[CardState | None]) -> list[str]:
    """Why what was measured between these states must not be used: others had come onto the card.

    `first` is the state at the start of the calibration. The utilization after a stage is the stage's own.
    """
    states = [state for state in around if state is not None]
    used = max((state.used_bytes or 0 for state in states), default=0)
    why = _computing(states)
    if not why and first.used_bytes is not None and used - first.used_bytes > _GROWN_BYTES:
        why = f"{format_bytes(used - first.used_bytes)} more are in use than at the start"
    return [f"not alone on the card: {why}"] if why else []


def new_calibration(target: Target) -> Calibration:
    """A calibration without stages, of this card, driver, JAX and source, as they are now."""
    device, machine = target.device, target.machine
    plugins = [name.replace("xla_", "jax-") + "-plugin" for name in cuda_plugins()]
    unknown = {
        name: why
        for name, value, why in (
            ("uuid", device.uuid, device.gpu.unknown.get("uuid")),
            ("total_bytes", device.total, device.gpu.unknown.get("total_bytes")),
            ("driver", machine.driver_version, machine.unknown.get("driver_version")),
        )
        if value is None and why
    }
    return Calibration(
        card=device.name,
        uuid=device.uuid,
        compute_capability=device.gpu.compute_capability,
        total_bytes=device.gpu.total_bytes if not device.mig else device.total,
        driver=machine.driver_version,
        jax=metadata.version("jax"),
        jaxlib=metadata.version("jaxlib"),
        plugin=", ".join(f"{name} {version_of(name)}" for name in plugins) or None,
        step_sha256=step_sha256(),
        stages_sha256=sha256_json([sha256_file(path) for path in own_paths()]),
        flags=jax_variables("cuda")["XLA_FLAGS"],
        cores=machine.host.cores,
        host_ram_bytes=machine.host.ram_total_bytes,
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        unknown=unknown,
    )
