"""The events of a trace that the profiler of JAX wrote: which kernel ran when, and what was copied.

On a GPU each stream of a device is a line of events, and a kernel says of which instruction it is (`hlo_op`).
On a CPU each thread is a line, and an event has the instruction's name. Both say of which program it is
(`hlo_module`): two programs may each have a `loop_add_fusion`.

While it is traced, XLA starts each kernel itself and replays no CUDA graph, in which kernels have no
instruction. That is the default of jaxlib 0.10.2 (xla_enable_command_buffers_during_profiling).

Source of the form: the trace of jaxlib 0.10.2, read by `jax.profiler.ProfileData`; for GPUs XLA's
xla/backends/profiler/gpu/cupti_collector.cc, and traces of JAX on AMD's cards in AMD-AGI/TraceLens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

# Other planes of this kind, as "/device:CUSTOM:…", are no device.
_DEVICE, _STREAM = "/device:GPU:", "Stream #"
_HOST = "/host:CPU"
_COPY = "memcpy"


class Event(NamedTuple):
    """One kernel or copy. Times in nanoseconds.

    `link`: it passed between host and device. `program`: the program it is of, if that is not the step.
    """

    device: str
    name: str
    start: float
    end: float
    link: bool = False
    program: str | None = None


def events_of(data: bytes, names: set[str], step: str | None = None) -> list[Event]:
    """The kernels and copies of the trace `data`; on a CPU, those that are instructions.

    `names` are the instructions of the step, and `step` is its program's name.

    Raises: ValueError if it is no trace.
    """
    from jax.profiler import ProfileData

    try:
        planes = list(ProfileData.from_serialized_xspace(data).planes)
    except Exception as error:
        # Its reader is C++, and raises what it likes.
        raise ValueError(str(error)) from error
    devices = [plane for plane in planes if plane.name.startswith(_DEVICE)]
    if devices:
        return [event for plane in devices for event in _of_device(plane, names, step)]
    return [event for plane in planes if plane.name == _HOST for event in _of_threads(plane, names, step)]


def _of_device(plane: Any, names: set[str], step: str | None) -> Iterator[Event]:
    # XLA names a kernel after its instruction, with what C does not take as "_".
    known = {name.replace(".", "_").replace("-", "_"): name for name in names}
    for line in plane.lines:
        if not line.name.startswith(_STREAM):
            continue
        for event in line.events:
            copy = event.name.lower().startswith(_COPY)
            op, other = _said(event, step)
            if op not in names and other is None:
                op = known.get(event.name, op)
            link = copy and ("h2d" in event.name.lower() or "d2h" in event.name.lower())
            name = event.name if link or op is None else op
            yield Event(plane.name, name, event.start_ns, event.end_ns, link, other)


def _of_threads(plane: Any, names: set[str], step: str | None) -> Iterator[Event]:
    for line in plane.lines:
        for event in line.events:
            op, other = _said(event, step)
            if event.name in names or op is not None:
                yield Event(plane.name, event.name, event.start_ns, event.end_ns, program=other)


def _said(event: Any, step: str | None) -> tuple[str | None, str | None]:
    """(The instruction that an event is of, its program if that is not `step`), as far as it says so."""
    stats = {key: str(value) for key, value in event.stats if key in ("hlo_op", "hlo_module")}
    program = stats.get("hlo_module")
    return stats.get("hlo_op"), program if step is not None and program != step else None


def covered(events: Iterable[Event]) -> float:
    """Seconds in which a device ran any of `events`, of all devices together."""
    total, until = 0.0, dict[str, float]()
    for event in sorted(events, key=lambda one: one.start):
        before = until.get(event.device, float("-inf"))
        total += max(0.0, event.end - max(event.start, before))
        until[event.device] = max(event.end, before)
    return total * 1e-9
