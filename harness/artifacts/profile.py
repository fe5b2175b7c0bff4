"""profile.json: where the time of a training step went. traced.json: what was traced for it."""

from __future__ import annotations

from typing import ClassVar

from harness.artifacts.base import Artifact
from harness.strict import Strict


class Traced(Artifact):
    """A trace of some steps, beside it the text of the program that ran.

    `seconds` are those of all traced steps together, from outside. `trace` is the file of the trace, below
    the directory of this file; None if the profiler wrote none.
    """

    FILE: ClassVar[str] = "traced.json"
    first_step: int
    steps: int
    seconds: float
    batch: int
    platform: str
    device: str
    devices: int
    jax: str
    trace: str | None


class ProfileRow(Strict):
    """One part of the step. Seconds, launches, operations and bytes are of one step.

    `turn` is forward, recomputed (the forward pass again, for the backward pass) or backward; empty for work
    that belongs to no pass. `operations` and `bytes` are of the compiled program: two for a multiply-add of a
    matrix product; operands and results of every kernel.
    """

    part: str
    turn: str
    seconds: float
    launches: float
    operations: int
    bytes: int


class ProfileKernel(Strict):
    """One instruction of the program. `seconds` and `launches` are of one step; `source` is its line."""

    name: str
    op: str
    part: str
    turn: str
    source: str | None
    seconds: float
    launches: float


class Profile(Artifact):
    """Where the time of a step went, from a trace of the device.

    `step_s` is measured from outside. The other times are of one device, the mean of those traced. `busy_s`:
    it computed, or copied to or from the host. `link_s`: it copied; `link_alone_s`: it did nothing else
    meanwhile. `unnamed_s`: kernels that no instruction of the program is known for.

    On a CPU the rows are the time of all threads together, and may be longer than the step.
    """

    FILE: ClassVar[str] = "profile.json"
    platform: str
    device: str
    devices: int
    first_step: int
    steps: int
    batch: int
    step_s: float
    busy_s: float
    link_s: float
    link_alone_s: float
    unnamed_s: float
    rows: list[ProfileRow]
    kernels: list[ProfileKernel]
    jax: str
    trace: str
