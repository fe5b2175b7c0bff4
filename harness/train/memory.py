"""Measures the memory that a run has used, beside the prediction.

Every real run thereby calibrates the next.
"""

from __future__ import annotations

import resource

from harness.artifacts import Memory
from harness.run.job import Job
from harness.train.compiled import CompiledStep

_ALLOCATOR = {"peak_bytes": "peak_bytes_in_use", "limit_bytes": "bytes_limit"}


def measure(job: Job, compiled: CompiledStep, step: int) -> Memory:
    """The measured memory after `step` steps, with the prediction and the compiler's figures."""
    plan = job.plan.chosen
    assert plan is not None
    layout = compiled.setup.layout
    devices = layout.mesh.devices.flat
    stats = [device.memory_stats() or {} for device in devices]
    found = {
        name: max((one[key] for one in stats if key in one), default=None) for name, key in _ALLOCATOR.items()
    }
    kind = str(devices[0].device_kind)
    return Memory(
        device=kind,
        devices=layout.devices,
        predicted_bytes=plan.host_bytes if plan.levers.platform == "cpu" else plan.device_bytes,
        breakdown=plan.breakdown,
        source=plan.source,
        compiled=compiled.bytes,
        step=step,
        **found,
        # Linux counts ru_maxrss in KiB; getrusage(2).
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        unknown={
            name: f"JAX's allocator on {kind} keeps no such figure"
            for name, value in found.items()
            if value is None
        },
    )
