"""What this machine has: probe."""

from __future__ import annotations

from harness.verbs.answers import answer
from harness.verbs.options import JsonOption, RunOption


def probe(run: RunOption = None, as_json: JsonOption = False) -> None:
    """What this machine has: GPUs (through NVML, without JAX), memory, disk, cores, container."""
    from harness.probe.machine import probe as read
    from harness.run.directory import RunDir, cache_root, runs_root
    from harness.show.machine import machine_table

    machine = read([run or runs_root(), cache_root()])
    if run is not None:
        RunDir(run).write(machine)
    answer(machine, as_json, machine_table)
