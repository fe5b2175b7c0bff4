"""A card at work, as NVML reports it: clocks, power, temperature, and what holds its clock down.

NVML is open only inside `read_state`. What it refuses is None with a reason.

Source: NVIDIA, NVML API Reference, "nvmlClocksEventReasons" (named throttle reasons before driver 535).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from harness.artifacts import CardState, Load
from harness.probe.nvml import Asker, memory_of
from harness.probe.nvml_errors import explained
from harness.probe.sharing import running

IDLE = "idle"
# What each bit of NVML's mask means, in words.
REASONS = {
    0x1: IDLE,
    0x2: "clocks set by a user",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "synchronized with other cards",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability voltage",
}
# Under these a card does less than it otherwise would, for a while. The power limit is no such reason: under
# the products of a training step most cards run at theirs all the time, and a run will too.
SLOWING = frozenset({"hardware slowdown", "temperature (driver)", "temperature (hardware)", "power brake"})


def read_state(index: int) -> CardState:
    """The state of the GPU with this number, in NVML's (PCI bus) order, at this moment."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return CardState(unknown={"card": explained(error).got[:1000]})
    try:
        return _state(pynvml, index)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _state(nvml: Any, index: int) -> CardState:
    asker = Asker(nvml)
    handle = asker.ask("card", nvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return CardState(unknown=asker.unknown)
    total, free, reserved = memory_of(asker, handle)
    used = None if total is None or free is None else max(0, total - free - (reserved or 0))
    milliwatts = asker.ask("power_w", nvml.nvmlDeviceGetPowerUsage, handle)
    limit = asker.ask("power_limit_w", nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    utilization = asker.ask("utilization_percent", nvml.nvmlDeviceGetUtilizationRates, handle)
    compute = asker.ask("largest_compute_bytes", running, nvml, "Compute", handle)
    told = [process.usedGpuMemory for process in compute or [] if process.usedGpuMemory is not None]
    unknown: dict[str, str] = {}
    if used is None:
        unknown["used_bytes"] = asker.unknown.get("total_bytes", "NVML does not tell")
    if compute and not told:
        unknown["largest_compute_bytes"] = "NVML does not tell the memory of each process here"
    state = CardState(
        sm_clock_mhz=asker.ask("sm_clock_mhz", nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=asker.ask(
            "memory_clock_mhz", nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM
        ),
        power_w=None if milliwatts is None else milliwatts / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        temperature_c=asker.ask(
            "temperature_c", nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
        ),
        utilization_percent=None if utilization is None else utilization.gpu,
        used_bytes=used,
        largest_compute_bytes=None if compute is None or (compute and not told) else max(told, default=0),
        throttle=asker.ask("throttle", _reasons, nvml, handle),
    )
    unknown |= {name: why for name, why in asker.unknown.items() if name in CardState.model_fields}
    return state.model_copy(update={"unknown": unknown})


def _reasons(nvml: Any, handle: Any) -> list[str]:
    """The reasons in words; a bit that is not known is named by its number."""
    try:
        mask = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    bits = [1 << number for number in range(64) if mask >> number & 1]
    return [REASONS.get(bit, f"reason {bit:#x} of the driver") for bit in bits]


def load_of(states: Iterable[CardState]) -> Load:
    """The extremes over the samples in which the card was not idle."""
    every = list(states)
    busy = [state for state in every if IDLE not in (state.throttle or [])]

    def told(name: str) -> list[float]:
        return [value for state in busy if (value := getattr(state, name)) is not None]

    return Load(
        samples=len(every),
        least_sm_clock_mhz=min(told("sm_clock_mhz"), default=None),
        most_power_w=max(told("power_w"), default=None),
        most_temperature_c=max(told("temperature_c"), default=None),
        throttle=sorted({reason for state in busy for reason in state.throttle or []}),
    )


def slowed(load: Load) -> list[str]:
    """The reasons for which what was measured under this load must not be used."""
    return [f"throttled: {reason}" for reason in load.throttle if reason in SLOWING]
