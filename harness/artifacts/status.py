"""The answer of `status` about a run that goes on, has ended or has died.

It is not written to a file: it holds for the moment at which it was read.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact

State = Literal["preparing", "running", "silent", "finished", "stopped", "died", "unknown"]


class Status(Artifact):
    """The state of a run.

    `step` counts the logged steps, of `steps`.

    `held_out_loss` is the mean over the held-out episodes at the last measured save, after `held_out_step`
    steps. Both are None if none was measured.

    `evaluation` says what the newest evaluation in the simulator found; None without one.

    Seconds per step are medians of the last logged ones. `expected_step_s` is the plan's. `eta_by` is whose
    pace `eta_s` follows: the run's own; before a step is logged, the plan's, where its card was calibrated.

    "silent": the process lives, but has not written for much longer than a step takes. "stopped": it ended
    before the last step and saved. "died": it ended, and its work since `saved_step` is lost. "unknown":
    nothing tells whether a process exists.
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
    held_out_loss: float | None = None
    held_out_step: int | None = None
    evaluation: str | None = None
    step_s: float | None = None
    expected_step_s: float | None = None
    data_s: float | None = None
    eta_s: float | None = None
    eta_by: Literal["run", "calibration"] | None = None
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
