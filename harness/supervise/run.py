"""Supervision of a run from start to end.

A failed attempt is followed by another from the last whole checkpoint. Every ending has its error message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.artifacts import Candidate, Machine, Plan
from harness.errors import HarnessError
from harness.run.directory import RunDir
from harness.run.steps import resumes_after
from harness.run.trainer import Supervised
from harness.run.watcher import Watcher
from harness.supervise.endings import Ending, explain
from harness.supervise.process import Limits, attempt
from harness.units import format_bytes


class Outcome(NamedTuple):
    """The state of a run that ended.

    `step` is the last saved step. `restarts` counts how often the trainer was started again.
    """

    step: int
    finished: bool
    restarts: int


def supervise(
    run: RunDir,
    plan: Plan,
    trainer: Supervised,
    watcher: Watcher,
    *,
    look: Callable[[], Machine],
    limits: Limits,
    restarts: int = 3,
    inherit: Sequence[int] = (),
) -> Outcome:
    """The state of a run that ended as it should.

    `look` probes the machine. The trainer inherits the file descriptors in `inherit`.

    Raises: HarnessError of the trainer, or "device-out-of-memory", "host-out-of-memory", "killed", "crashed",
    "bus-error", "hung", "ten-times-slower", "gpu-lost", "trainer-failed" or "stopped".
    """
    done = 0
    while True:
        before = resumes_after(run.checkpoints, plan.backend)
        result = attempt(trainer.command(run), watcher, limits, inherit=inherit)
        if result.ended_before_it_began:
            return Outcome(before, False, done)
        ending = (
            explain(result, plan, look(), trainer.crashed)
            if result.end is None or result.stopped_for
            else None
        )
        if ending is None:
            assert result.end is not None
            return Outcome(*result.end, done)
        smaller = _smaller(plan) if ending.smaller else None
        # A second attempt that saves nothing new would end like this one, unless it follows another plan.
        went_further = done == 0 or _saved(run, plan) > before
        if (
            not _goes_on(ending, smaller, went_further=went_further)
            or done >= restarts
            or result.asked_to_stop
        ):
            raise ending.error
        done += 1
        watcher.warn(
            f"{ending.error.what} ({ending.error.got}); going on from the last whole checkpoint, attempt"
            f" {done + 1} of {restarts + 1}"
        )
        if smaller is not None:
            plan = plan.model_copy(update={"chosen": smaller})
            run.write(plan)
            watcher.warn(
                "with the next plan of the same mathematics, which needs"
                f" {format_bytes(smaller.device_bytes)} of the device: {smaller.reason}"
            )


def _saved(run: RunDir, plan: Plan) -> int:
    """The steps that a resume has behind it; -1 if a step may not be read: the crash is what matters."""
    try:
        return resumes_after(run.checkpoints, plan.backend)
    except HarnessError:
        return -1


def _goes_on(ending: Ending, smaller: Candidate | None, *, went_further: bool) -> bool:
    return ending.again and (smaller is not None if ending.smaller else went_further)


def _smaller(plan: Plan) -> Candidate | None:
    """The largest fitting plan with the chosen one's changes that needs less device memory than it."""
    chosen = plan.chosen
    if chosen is None or chosen.device_bytes is None:
        return None
    same = [
        candidate
        for candidate in plan.candidates
        if candidate.verdict == "fits"
        and candidate.changes == chosen.changes
        and (candidate.device_bytes or chosen.device_bytes) < chosen.device_bytes
    ]
    return max(same, key=lambda candidate: candidate.device_bytes or 0, default=None)
