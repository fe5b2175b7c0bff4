"""Determines the state of a run, and the reason: from its lock, its log and its checkpoints."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from harness.artifacts.status import State
from harness.units import format_seconds

# A process may log nothing for this many of its steps, and for at least this time: it may be saving, or
# compiling for a resume.
SILENT_STEPS, SILENT_S = 20, 120.0


class Standing(NamedTuple):
    """The known facts of a run.

    `process` holds the run; `owner` is the machine that last held it. `step` of `steps` are done, and
    `logged` of them logged, one line per `every` steps, the last line `age_s` seconds ago. The last whole
    checkpoint has taken `saved` steps.
    """

    process: str | None
    owner: str | None
    logged: int
    step: int
    steps: int | None
    saved: int | None
    age_s: float | None
    step_s: float | None
    every: int
    checkpoints: Path

    def state(self) -> tuple[State, str]:
        """The state and its reason."""
        return self._living(self.process) if self.process else self._gone()

    def _living(self, process: str) -> tuple[State, str]:
        if self.age_s is None:
            return "preparing", f"{process} holds the run; nothing is logged yet"
        if self.age_s > _patience(self.step_s, self.every) and not self._all_done:
            return (
                "silent",
                f"{process} holds the run, yet {self._said}; a step takes {format_seconds(self.step_s)}",
            )
        return "running", f"{process} holds the run; {self._said}"

    def _gone(self) -> tuple[State, str]:
        """The state and its reason when no process holds the run."""
        said, step, saved = self._said, self.step, self.saved
        if (
            self.owner is None
            and self.age_s is not None
            and self.age_s < _patience(self.step_s)
            and not self._all_done
        ):
            return "unknown", f"{said}; the run has no lock, so it is not known whether a process is there"
        elsewhere = (
            f"; it was locked on {self.owner}, whose locks may not reach this machine"
            if self.owner not in (None, socket.gethostname())
            else ""
        )
        kept = saved is not None or _any_entry(self.checkpoints)
        if self._all_done and self.steps is not None and ((saved or 0) >= self.steps or not kept):
            without = "" if kept else "; there is no checkpoint"
            where = "logged" if self.logged >= self.steps else "saved"
            return "finished", f"all {self.steps:,} steps are {where}; {said}{without}"
        if self.age_s is None and saved is None:
            return (
                "died" if self.owner else "stopped",
                f"no process holds the run, and {said}{elsewhere}",
            )
        if saved is not None and saved >= step:
            return (
                "stopped",
                f"no process holds the run; it is saved up to its last step, {step:,}; {said}{elsewhere}",
            )
        lost = (
            f"the last whole checkpoint is of step {saved:,}"
            if saved is not None
            else "it saved no checkpoint"
        )
        return (
            "died",
            f"no process holds the run; its work up to step {step:,} was not saved: {lost};"
            f" {said}{elsewhere}",
        )

    @property
    def _all_done(self) -> bool:
        return self.steps is not None and self.step >= self.steps

    @property
    def _said(self) -> str:
        return (
            "nothing is logged"
            if self.age_s is None
            else f"the last line was written {format_seconds(self.age_s)} ago"
        )


def _any_entry(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError:
        return False


def _patience(step_s: float | None, every: int = 1) -> float:
    return max(SILENT_S, (SILENT_STEPS + every - 1) * (step_s or 0.0))
