"""What `status` answers about a run, going on, ended or died.

Nothing is written: it is true for the moment in which it was read.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact

State = Literal["preparing", "running", "silent", "finished", "stopped", "died", "unknown"]


class Status(Artifact):
    """`step` counts the steps that are logged, of `steps`.

    Seconds a step are medians of the last logged ones, `expected_step_s` is the plan's.

    "silent": the process lives, and has not written for much longer than a step takes. "stopped": it ended
    before the last step and saved. "died": it ended and what it did since `saved_step` is lost. "unknown":
    nothing tells whether a process is there.
    """

    FILE: ClassVar[str] = "status.json"
    run: str
    recipe: str | None
    state: State
    reason: str
    step: int
    steps: int | None
    saved_step: int | None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    step_s: float | None = None
    expected_step_s: float | None = None
    data_s: float | None = None
    eta_s: float | None = None
    last_line_time: float | None = None
    last_line_age_s: float | None = None
    process: str | None = None
    losses: list[float | None] = []
    losses_since_step: int | None = None
    predicted_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    findings: list[str] = []
    unknown: dict[str, str] = {}
