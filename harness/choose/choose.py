"""Chooses among the measured saves of a run, by paired comparison over the held-out episodes.

Every save was measured on the same frames with the same noise, so two saves are compared episode by episode.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.artifacts import Manifest
from harness.artifacts.choice import By, Choice, Interval, Mark, OfDataset, Switches
from harness.artifacts.held_out import HeldOutLine, read_held_out
from harness.choose.intervals import Floats, Method, intervals
from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.received.files import stays, there
from harness.received.text import word
from harness.run.directory import CHECKPOINTS, RunDir, sha256_file
from harness.run.status import check_is_run
from harness.run.steps import whole_steps

LEVEL = 0.95
# With fewer episodes the 95 % interval is more than 1.14 times as wide as with many.
FEW_EPISODES = 10
WORDS: dict[By, str] = {"loss": "held-out loss", "action": "error of sampled actions"}


class _Measured(NamedTuple):
    """The lines of one hash of rows, and their values [E, S], NaN where one is not finite.

    Of a mixture an episode's value counts as often as its dataset is drawn, so that the mean over the
    episodes is that over the datasets with their shares.
    """

    lines: list[HeldOutLine]
    losses: Floats
    shares: Floats
    by: By

    @property
    def values(self) -> Floats:
        return self.losses if self.by == "loss" else self.shares


def choose(run: RunDir, by: By = "loss") -> Choice:
    """The choice by held-out loss, or by the error of sampled actions. Reads files of the run alone.

    Raises: HarnessError "not-held-out", "held-out-unmeasured"; UnsafeFile.
    """
    lines, notes = _lines(run)
    weights = np.array(lines[-1].weights)[:, None]
    measured = _Measured(
        lines, _matrix([line.loss for line in lines]) * weights, _shares(lines) * weights, by
    )
    on_disk = _on_disk(run, notes)
    with np.errstate(over="ignore", invalid="ignore"):
        means = measured.values.mean(axis=0)
    whole = np.isfinite(means)
    means = np.where(whole, means, np.inf)
    there_too = np.array([line.step in on_disk for line in lines]) & whole
    best = int(np.argmin(means)) if whole.any() else None
    chosen = int(np.argmin(np.where(there_too, means, np.inf))) if there_too.any() else None
    marks = _marks(measured, on_disk, best if chosen is None else chosen)
    alike = [
        mark.step
        for i, mark in enumerate(marks)
        if i != chosen and mark.worse and mark.told_apart is not True
    ]
    notes += _notes(run, lines, on_disk, marks)
    step = None if chosen is None else lines[chosen].step
    answer = _answer(marks, by, None if best is None else lines[best].step, step, alike)
    return Choice(
        inputs=sha256_file(run.held_out),
        run=str(run.path),
        by=by,
        parameters=lines[-1].parameters,
        episodes=len(lines[-1].episodes),
        frames=sum(lines[-1].frames),
        interval=Method(len(lines[-1].episodes)).words,
        marks=marks,
        best=None if best is None else lines[best].step,
        chosen=step,
        alike=alike,
        answer=answer,
        notes=notes,
        commands=[] if step is None else _commands(run, step),
    )


def _lines(run: RunDir) -> tuple[list[HeldOutLine], list[str]]:
    """The lines of the newest rows, by step, and notes on those that are left out."""
    try:
        found = read_held_out(run.held_out, run.path)
    except OSError as error:
        raise HarnessError(
            "artifact-unreadable",
            f"{run.held_out} cannot be read: {error.strerror}",
            need="a file that this user may read",
            fix=may_be_opened(run.held_out),
        ) from error
    if found is None:
        raise _not_held_out(run)
    if not found.lines:
        raise HarnessError(
            "held-out-unmeasured",
            f"{run.held_out} has no readable line: no save was measured yet",
            got=f"{found.unreadable} lines that are torn or of another form",
            need="a measured save",
            fix=f"harness choose {word(run.path)} --fill measures the saves on disk",
        )
    newest = found.newest
    form = _form(newest[-1])
    alike = [line for line in newest if _form(line) == form]
    notes = []
    if found.unreadable:
        notes.append(f"{found.unreadable} lines of {run.held_out.name} are torn or of another form")
    others = len(found.lines) - len(alike)
    if others:
        notes.append(
            f"{others} lines are of other frames or episodes (train.holdout was changed) and are not compared"
        )
    return alike, notes


def _form(line: HeldOutLine) -> tuple[object, ...]:
    """What two lines have in common that can be compared."""
    datasets = [(one.dataset, one.share, one.episodes, len(one.spread)) for one in line.parts]
    return line.episodes, datasets, line.parameters


def _not_held_out(run: RunDir) -> HarnessError:
    check_is_run(run)
    # A run without a manifest has not begun.
    holds = there(run.path / Manifest.FILE) and (manifest := run.read(Manifest)) and manifest.held_out_count
    if holds:
        return HarnessError(
            "held-out-unmeasured",
            f"{run.path} holds episodes out, and no save was measured yet",
            need="a measured save",
            fix=f"harness choose {word(run.path)} --fill measures the saves on disk",
        )
    return HarnessError(
        "not-held-out",
        f"{run.path} held no episode out, so nothing tells its checkpoints apart but the training loss",
        got="no train.holdout in its recipe",
        need="a run whose recipe has train.holdout",
        fix="harness train --recipe smoke --set train.holdout.episodes=0.05, with your own recipe",
    )


def _on_disk(run: RunDir, notes: list[str]) -> set[int]:
    try:
        if there(run.checkpoints) and not stays(run.path, run.checkpoints):
            notes.append(f"{CHECKPOINTS} is a link that leads out of the run; it was not followed")
            return set()
        return set(whole_steps(run.checkpoints))
    except (OSError, RuntimeError, HarnessError) as error:
        notes.append(f"{CHECKPOINTS} cannot be read: {error}")
        return set()


def _matrix(columns: list[list[float | None]]) -> Floats:
    """[E, S] of a list a save; NaN where a value is None."""
    return np.array([[np.nan if x is None else x for x in column] for column in columns], np.float64).T


def _shares(lines: list[HeldOutLine]) -> Floats:
    """[E, S]: the mean over moving dimensions of the error as a share of the dimension's spread."""
    return np.stack(
        [np.concatenate([_share(line, part) for part in range(len(line.parts))]) for line in lines], axis=1
    )


def _share(line: HeldOutLine, part: int) -> Floats:
    """[E of the dataset at this position]."""
    spreads = line.parts[part].spread
    moving = [d for d, spread in enumerate(spreads) if spread]
    if not moving:
        return np.full(line.parts[part].episodes, np.nan)
    spread = np.array([spreads[d] for d in moving], np.float64)
    with np.errstate(over="ignore"):
        found: Floats = (_matrix(line.error[line.rows_of(part)]).T[:, moving] / spread).mean(axis=1)
    return found


def _of_datasets(line: HeldOutLine) -> list[OfDataset]:
    """Each dataset of a mixture alone, without its share."""
    found = []
    for part, one in enumerate(line.datasets):
        mine = line.rows_of(part)
        (loss,) = intervals(_matrix([line.loss[mine]]), LEVEL)
        (action,) = intervals(_share(line, part)[:, None], LEVEL)
        errors = intervals(_matrix(line.error[mine]).T, LEVEL)
        found.append(OfDataset(dataset=one.dataset, loss=loss, action=action, errors=errors))
    return found


def _marks(measured: _Measured, on_disk: set[int], best: int | None) -> list[Mark]:
    lines, values = measured.lines, measured.values
    losses, shares = intervals(measured.losses, LEVEL), intervals(measured.shares, LEVEL)
    worse: list[Interval | None] = [None] * len(lines)
    if best is not None and len(lines) > 1:
        # All comparisons together are wrong in at most 5 % of the cases (Bonferroni). The best is known only
        # from the same episodes, so every pair of saves might have been the one that is compared.
        level = 1 - (1 - LEVEL) / math.comb(len(lines), 2)
        with np.errstate(over="ignore", invalid="ignore"):
            differences = intervals(values - values[:, [best]], level)
        worse = [None if i == best else each for i, each in enumerate(differences)]
    return [
        Mark(
            step=line.step,
            on_disk=line.step in on_disk,
            loss=loss,
            action=share,
            errors=[] if line.datasets else intervals(_matrix(line.error).T, LEVEL),
            datasets=_of_datasets(line),
            switches=_switches(line),
            worse=difference if difference is not None and difference.mean is not None else None,
            told_apart=_told_apart(difference),
        )
        for line, loss, share, difference in zip(lines, losses, shares, worse, strict=True)
    ]


def _told_apart(difference: Interval | None) -> bool | None:
    if difference is None or difference.low is None or difference.high is None:
        return None
    return difference.low > 0 or difference.high < 0


def _switches(line: HeldOutLine) -> Switches | None:
    if not line.switches:
        return None
    offsets = Counter(switch.offset for switch in line.switches if switch.offset is not None)
    return Switches(
        count=len(line.switches),
        missed=sum(switch.offset is None for switch in line.switches),
        offsets=dict(sorted(offsets.items())),
    )


def _answer(marks: list[Mark], by: By, best: int | None, chosen: int | None, alike: list[int]) -> str:
    saves = f"the {len(marks)} measured saves" if len(marks) > 1 else "the one measured save"
    if best is None:
        return f"none: the {WORDS[by]} of {saves} is not finite"
    if chosen is None:
        return f"none is left to choose: of {saves} no finite one is on disk (step {best:,} was the best)"
    if len(marks) == 1:
        return f"step {chosen:,} is the only measured save, so there is nothing to compare it with"
    there_are = [mark for mark in marks if mark.on_disk]
    of = f"of the {len(there_are)} measured saves on disk" if len(there_are) > 1 else "of what is on disk"
    words = f"step {chosen:,} has the least {WORDS[by]} {of}"
    others = [step for step in alike if any(mark.step == step and mark.on_disk for mark in marks)]
    if others:
        words += f"; {_steps(others)} cannot be told apart from it"
    elif len(there_are) > 1:
        words += "; every other one on disk is worse"
    if best != chosen:
        lower = next(mark for mark in marks if mark.step == best)
        sure = "and is told apart from it" if lower.told_apart else "but cannot be told apart from it"
        words += f"; step {best:,}, which is no longer on disk, was lower, {sure}"
    return words


def _steps(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:12]) + (" …" if len(steps) > 12 else "")
    return f"step{'s' * (len(steps) > 1)} {shown}"


def _notes(run: RunDir, lines: list[HeldOutLine], on_disk: set[int], marks: list[Mark]) -> list[str]:
    notes = []
    gone = [mark.step for mark in marks if not mark.on_disk]
    if gone:
        notes.append(
            f"{_steps(gone)} of the measured saves {'are' if len(gone) > 1 else 'is'} not on disk: a run"
            " keeps the last save and the multiples of train.keep_every_steps"
        )
    unmeasured = sorted(on_disk - {line.step for line in lines})
    if unmeasured:
        notes.append(
            f"{_steps(unmeasured)} on disk {'are' if len(unmeasured) > 1 else 'is'} not measured: harness"
            f" choose {word(run.path)} --fill"
        )
    lost = [mark.step for mark in marks if mark.loss.mean is None or mark.action.mean is None]
    if lost:
        notes.append(f"the held-out loss or action error of {_steps(lost)} is not finite")
    if 1 < len(lines[-1].episodes) < FEW_EPISODES:
        notes.append(
            f"intervals over {len(lines[-1].episodes)} episodes are wide: hold more of them out"
            " (train.holdout.episodes)"
        )
    if len(lines[-1].episodes) < 2:
        notes.append("one held-out episode gives no interval, so no two saves can be told apart")
    if not all(any(one.spread) for one in lines[-1].parts):
        notes.append("no action of the trained episodes moves, so the error of actions has no scale")
    return notes


def _commands(run: RunDir, step: int) -> list[str]:
    directory = run.checkpoints / str(step)
    found = [f"harness predict {word(directory)} --run {word(run.path)}"]
    if _has_adapters(run):
        found.append(f"harness export {word(directory)} {word(Path('exports') / f'{run.path.name}-{step}')}")
    return found


def _has_adapters(run: RunDir) -> bool:
    """True if the run's recipe trains adapters, which an export merges."""
    try:
        manifest = run.read(Manifest)
    except HarnessError:
        return False
    model = (manifest.recipe if manifest else {}).get("model")
    experts = model.values() if isinstance(model, dict) else ()
    return any(isinstance(expert, dict) and expert.get("lora") for expert in experts)
