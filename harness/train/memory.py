"""Measures the memory that a run has used, beside the prediction.

Every real run thereby calibrates the next.
"""

from __future__ import annotations

import json
import resource

from harness.artifacts import Memory, Plan
from harness.errors import HarnessError
from harness.run.job import Job
from harness.run.peers import ALONE, Peers
from harness.train.compiled import CompiledStep
from harness.units import format_bytes

_ALLOCATOR = {"peak_bytes": "peak_bytes_in_use", "limit_bytes": "bytes_limit"}


def measure(job: Job, compiled: CompiledStep, step: int, peers: Peers = ALONE) -> Memory:
    """The measured memory after `step` steps, with the prediction and the compiler's figures.

    Of several processes the largest value of any.
    """
    plan = job.plan.chosen
    assert plan is not None
    layout = compiled.setup.layout
    devices = layout.mesh.devices.flat
    # The allocators of other processes are theirs to ask.
    own = [device for device in devices if peers.count == 1 or device.process_index == peers.index]
    stats = [device.memory_stats() or {} for device in own]
    # Linux counts ru_maxrss in KiB; getrusage(2).
    host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    here = {
        name: max((one[key] for one in stats if key in one), default=None) for name, key in _ALLOCATOR.items()
    }
    told = [json.loads(text) for text in peers.gather(json.dumps(here | {"host": host_bytes}))]
    found = {
        name: max((one[name] for one in told if one[name] is not None), default=None) for name in _ALLOCATOR
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
        host_peak_bytes=max(one["host"] for one in told),
        unknown={
            name: f"JAX's allocator on {kind} keeps no such figure"
            for name, value in found.items()
            if value is None
        },
    )


def check_fits(compiled: CompiledStep, plan: Plan) -> None:
    """Raises: HarnessError "does-not-fit" if the step needs more than the plan's device has."""
    need, usable = compiled.bytes["device"], plan.usable_bytes
    if usable is not None and need > usable:
        raise HarnessError(
            "does-not-fit",
            f"the compiled step does not fit {plan.device}; nothing was allocated",
            got=f"{format_bytes(usable)} usable",
            need=f"{format_bytes(need)} by XLA's buffer assignment",
            fix=(
                "free the device's memory (harness probe shows who holds it), or train less: --recipe"
                " pi05_libero_lora"
            ),
        )
