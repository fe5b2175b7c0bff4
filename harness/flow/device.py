"""The environment variables that JAX reads once, at import: device, share of memory, compilation cache."""

from __future__ import annotations

import os

from harness.artifacts import Gpu, Machine, MigDevice, Plan
from harness.run.surroundings import jax_variables


def prepare_jax(plan: Plan, machine: Machine) -> None:
    """Sets the variables that JAX reads at import, so that JAX starts on the plan's device."""
    assert plan.chosen is not None
    start_on(machine, plan.chosen.levers.platform, plan.device_uuid, plan.usable_bytes)
    if plan.device_uuids:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(plan.device_uuids)
    if plan.memory_fraction is not None:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{plan.memory_fraction:.3f}"


def start_on(machine: Machine, platform: str, uuid: str | None, usable_bytes: int | None) -> None:
    """Sets the device, its share of memory and the compilation cache. JAX must not have been imported yet."""
    os.environ.update(jax_variables(platform))
    devices: list[Gpu | MigDevice] = [*machine.gpus]
    for gpu in machine.gpus:
        devices += gpu.mig_devices
    card = next((each for each in devices if uuid is not None and each.uuid == uuid), None)
    if card is not None and card.uuid is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card.uuid
        if usable_bytes and card.total_bytes:
            # JAX takes a fraction of *total* memory at its first operation. Ours follows from the free memory
            # that NVML reports.
            os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{usable_bytes / card.total_bytes:.3f}"
