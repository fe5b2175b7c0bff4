"""A calibration from its first stage to its last, or to the end of its time.

Each stage is written when it has ended, so whatever ends the calibration, what was measured is kept. A file
of another card, driver, JAX or source is left alone: the new one is begun beside it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from harness.artifacts import Calibration, CalibrationStage, CardState
from harness.calibrate.card import Target, check_free, new_calibration, not_alone
from harness.calibrate.child import COMMAND, Watched, run_stage
from harness.calibrate.stages import LEAST_S, STAGES, Request, Stage
from harness.errors import HarnessError
from harness.plan.calibrated import directory_name, holds_for, root
from harness.received.text import word
from harness.run.directory import RunDir
from harness.supervise.signals import stop_requests

# Errors under which no later stage can do better.
_HOPELESS = ("device-unavailable", "devices-missing", "no-target-compiler")
_LEFT_OUT = "not begun"


class Ears(Protocol):
    """Who is told how a calibration goes."""

    def begin(self, stage: Stage, number: int, of: int, left_s: float) -> None:
        """Called before a stage begins."""

    def doing(self, text: str, left_s: float) -> None:
        """Called with what a stage does."""

    def done(self, stage: CalibrationStage) -> None:
        """Called with a stage that has ended."""

    def say(self, text: str) -> None:
        """Called with anything else that a person should know."""


class Way(NamedTuple):
    """How a calibration is carried out. Only tests give another platform than a GPU, or other stages."""

    look: Callable[[], CardState]
    stages: Sequence[Stage] = STAGES
    platform: str = "cuda"
    command: Sequence[str] = COMMAND
    least_s: float = LEAST_S
    looks: int = 3


class Done(NamedTuple):
    """The calibration, its directory, and the signal that ended it before its time, if one did."""

    calibration: Calibration
    directory: Path
    stopped: signal.Signals | None

    @property
    def complete(self) -> bool:
        """Whether each stage was measured, or need not be."""
        states = {stage.state for stage in self.calibration.stages}
        return not self.stopped and states <= {"measured", "skipped"} and not self._left_out()

    def _left_out(self) -> bool:
        return any(why.startswith(_LEFT_OUT) for why in self.calibration.unknown.values())


def begun(target: Target, output: Path | None, ears: Ears) -> tuple[Calibration, Path]:
    """(the calibration to go on with, or a new one; its directory).

    Raises: HarnessError "artifact-invalid" or "artifact-unreadable" for a file there that is none,
    "calibration-of-another".
    """
    new = new_calibration(target)
    directory = root() / directory_name(new) if output is None else output
    found = RunDir(directory).read(Calibration)
    if found is not None and holds_for(found) != holds_for(new):
        beside = directory / directory_name(new)
        names = [name for name, value in holds_for(new).items() if holds_for(found)[name] != value]
        ears.say(
            f"the calibration in {directory} is of another {', '.join(names).replace('_', ' ')}: it is left"
            f" as it is, and a new one is begun in {beside}"
        )
        directory, found = beside, _own(beside, new)
    elif output is None and found is None:
        others = [path.name for path in sorted(root().iterdir())] if root().is_dir() else []
        mine = [name for name in others if name.rpartition("-")[0] == directory.name.rpartition("-")[0]]
        if mine:
            ears.say(
                f"{new.card} was calibrated with another driver, JAX or source before: that is left as it is,"
                " and a new calibration is begun beside it"
            )
    return found or new, directory


def _own(beside: Path, new: Calibration) -> Calibration | None:
    """What was begun in a directory that is named by what it holds for.

    Raises: HarnessError "calibration-of-another" for a file that somebody has put there or changed.
    """
    found = RunDir(beside).read(Calibration)
    if found is not None and holds_for(found) != holds_for(new):
        raise HarnessError(
            "calibration-of-another",
            f"{beside / new.FILE} is not of the card, driver and versions that its directory is named by",
            got=f"{found.card}, driver {found.driver}, jax {found.jax}",
            need="the file as it was written, or none",
            fix=f"rm {word(beside / new.FILE)}, then harness calibrate",
        )
    return found


def calibrate(target: Target, output: Path | None, minutes: float, way: Way, ears: Ears) -> Done:
    """The calibration, with as many stages more as fit into `minutes`.

    Raises: HarnessError "gpu-busy" before anything is measured, "artifact-invalid", "not-writable",
    "disk-full".
    """
    made, directory = begun(target, output, ears)
    first = check_free(target, way.look, looks=way.looks) if way.platform == "cuda" else CardState()
    made = made.model_copy(update={"unknown": _kept(made)})
    RunDir(directory).write(made)
    heard: list[signal.Signals] = []
    deadline, hopeless = time.monotonic() + 60 * minutes, ""
    with stop_requests(heard.append):
        for number, stage in enumerate(way.stages, 1):
            left = deadline - time.monotonic()
            if stage.name in _finished(made):
                continue
            if heard or hopeless or left < way.least_s:
                why = "it was stopped" if heard else hopeless or f"no time is left of {minutes:g} minutes"
                made = _without(made, stage, why)
                continue
            ears.begin(stage, number, len(way.stages), left)
            how = Watched(
                way.look,
                lambda text: ears.doing(text, deadline - time.monotonic()),
                lambda: bool(heard),
                _environment(target, way),
                way.command,
            )
            ended, code = run_stage(stage.name, _request(target, stage, way), min(stage.limit_s, left), how)
            if ended is None:
                made = _without(made, stage, "it was stopped")
                continue
            ended = _marked(ended, first)
            made = _with(made, ended)
            RunDir(directory).write(made)
            ears.done(ended)
            hopeless = f"after stage {stage.name} no other can do better" if code in _HOPELESS else ""
    RunDir(directory).write(made)
    return Done(made, directory, heard[0] if heard else None)


def _finished(made: Calibration) -> set[str]:
    """The stages that are not measured again. A card that was throttled may have cooled down."""
    return {stage.name for stage in made.stages if stage.usable}


def _kept(made: Calibration) -> dict[str, str]:
    return {name: why for name, why in made.unknown.items() if not why.startswith(_LEFT_OUT)}


def _without(made: Calibration, stage: Stage, why: str) -> Calibration:
    """The calibration, which says why the stage was not begun."""
    return made.model_copy(update={"unknown": made.unknown | {stage.name: f"{_LEFT_OUT}: {why}"}})


def _with(made: Calibration, stage: CalibrationStage) -> Calibration:
    """The calibration with this stage in the place of an older one of its name."""
    stages = {one.name: one for one in made.stages} | {stage.name: stage}
    return made.model_copy(update={"stages": list(stages.values())})


def _request(target: Target, stage: Stage, way: Way) -> Request:
    return Request(
        work=stage.work,
        platform="cuda" if way.platform == "cuda" else "cpu",
        index=None if target.device.mig else target.device.gpu.index,
        total_bytes=target.device.total,
    )


def _environment(target: Target, way: Way) -> dict[str, str]:
    """The variables of a stage, beside those that it sets itself: the one card that it sees."""
    if way.platform != "cuda" or target.device.uuid is None:
        return {}
    return {"CUDA_VISIBLE_DEVICES": target.device.uuid}


def _marked(stage: CalibrationStage, first: CardState) -> CalibrationStage:
    """The stage, marked if others came onto the card."""
    if stage.state != "measured":
        return stage
    return stage.model_copy(update={"marks": stage.marks + not_alone(first, [stage.before, stage.after])})
