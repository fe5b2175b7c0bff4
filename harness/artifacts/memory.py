"""memory.json: memory as planned, as compiled for the actual device, and as used at the end."""

from __future__ import annotations

from typing import ClassVar

from harness.artifacts.base import Artifact


class Memory(Artifact):
    """A run's memory, in bytes.

    `compiled` is of one device: argument, output, alias, temp, device.

    `step` counts the steps done when `peak_bytes`, `limit_bytes` and `host_peak_bytes` were read.

    `predicted_bytes`, `breakdown` and `source` are the plan's. `peak_bytes` and `limit_bytes` are the
    allocator's, of the fullest device, since the process started. On a CPU the device is the host, whose peak
    is the process's own resident memory.
    """

    FILE: ClassVar[str] = "memory.json"
    device: str
    devices: int
    predicted_bytes: int | None
    breakdown: dict[str, int]
    source: str
    compiled: dict[str, int]
    step: int
    peak_bytes: int | None
    limit_bytes: int | None
    host_peak_bytes: int
    unknown: dict[str, str] = {}
