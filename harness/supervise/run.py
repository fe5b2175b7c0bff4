"""A run watched from start to end: attempts that go on from the last whole checkpoint, and words for whatever
ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from harness.artifacts import Candidate, Machine, Plan
from harness.errors import HarnessError
from harness.run.directory import RunDir
from harness.run.steps import resumes_after
from harness.run.watcher import Watcher
from harness.supervise.endings import Ending, explain
from harness.supervise.process import Limits, attempt
from harness.units import format_bytes


class Outcome(NamedTuple):
    """`step` is where the run stands, saved; `restarts` how often the trainer had to be started again."""

    step: int
    finished: bool
    restarts: int


class Trainer(Protocol):
    """A trainer as its supervisor knows it; flow/trainer.py has all of it."""

    def command(self, run: RunDir) -> list[str]:
        """The command that trains what the files of `run` say."""

    def crashed(self, phase: str, name: str, got: str) -> HarnessError | None:
        """What a crash in that phase by the signal `name` means, where this trainer knows more of it."""


def supervise(
    run: RunDir,
    plan: Plan,
    trainer: Trainer,
    watcher: Watcher,
    *,
    look: Callable[[], Machine],
    limits: Limits,
    restarts: int = 3,
    inherit: Sequence[int] = (),
) -> Outcome:
    """Where the run stands when it ends as it should.

    `look` probes the machine; the trainer inherits the file descriptors `inherit`.

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
        # A second attempt that saves nothing new would end as this one did, unless it is carried out in
        # another way.
        went_further = done == 0 or resumes_after(run.checkpoints, plan.backend) > before
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


def _goes_on(ending: Ending, smaller: Candidate | None, *, went_further: bool) -> bool:
    return ending.again and (smaller is not None if ending.smaller else went_further)


def _smaller(plan: Plan) -> Candidate | None:
    """The largest of the plans that fit, change the recipe in the same way, and need less of the device than
    the chosen one.
    """
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
