"""Findings of a log apart from its trend: weights, rates, pace, and lines that could not be read.

For gradients see analyse.gradients.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from harness.analyse.lines import Records
from harness.analyse.schedule import learning_rate
from harness.artifacts.curve import CurveFinding, HeldOut, Jump, Learning, Spike, Throughput
from harness.recipe.schema import Recipe
from harness.units import format_seconds

Floats = npt.NDArray[np.float64]

FIRST_FEW = 10
# The last of many noisy held-out losses lies above the lowest of them. Only a rise of more than so many
# standard deviations is one; flat noise rises so in at most 1 to 2 % of runs. Three losses never tell.
_RISE, _RISE_OF_FEW = 6.0, {4: 10.5, 5: 7.7, 6: 6.9, 7: 6.3}
# For a loss that is lost before any rate was applied: the causes to look at, likeliest first.
NOT_THE_RATE = (
    "look at the weights (harness inspect CHECKPOINT --deep), the devices (the same run on one GPU), the data"
    " (harness stats), in this order"
)


def about_reading(records: Records, columns: dict[str, Floats]) -> list[CurveFinding]:
    """Notes about values that were read differently from how they are written, and about missing ones."""
    log = records.log
    found = [*_about_steps(records)]
    if log.decimal_commas:
        found.append(
            CurveFinding(
                severity="info",
                code="decimal-commas",
                text="numbers are written with a decimal comma (0,1146) and were read so",
            )
        )
    if log.states:
        text = (
            f"{log.states:,} states of a progress bar show the loss of a single step; they are another series"
            " than the log's own lines and were left out"
        )
        found.append(CurveFinding(severity="info", code="bar-left-out", text=text))
    if records.torn:
        found.append(
            CurveFinding(
                severity="info",
                code="last-line-torn",
                text="the last line is cut off and was left out: the program was writing, or was killed",
            )
        )
    if records.unreadable:
        text = (
            f"{records.unreadable:,} lines name a step and a loss that could not be read; they were left out"
        )
        found.append(CurveFinding(severity="warning", code="lines-unreadable", text=text))
    missing = [name for name in ("grad_norm", "param_norm") if not columns[f"has_{name}"].any()]
    if missing:
        text = (
            f"the log has no {' and no '.join(missing)}: another trainer than openpi's or the harness's"
            " wrote it, or lines were filtered out"
        )
        found.append(CurveFinding(severity="info", code="columns-missing", text=text))
    gaps = np.diff(columns["step"])
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    wide = np.flatnonzero(gaps > 3 * usual) if len(gaps) >= 8 else np.empty(0, int)
    if len(wide):
        found.append(
            CurveFinding(
                severity="info",
                code="steps-missing",
                text=(
                    f"{len(wide)} gap{'s' * (len(wide) != 1)} in the steps, of up to {gaps.max():,.0f} steps"
                    f" where {usual:,.0f} are usual"
                ),
                steps=first_steps(columns["step"], wide),
            )
        )
    return found


def _about_steps(records: Records) -> list[CurveFinding]:
    """Notes about steps that were rounded, impossible or missing in the log."""
    found, how = [], records.log.rebuilt
    if how is not None:
        text = (
            "steps are printed rounded (1K stands for 500 to 1,500); the exact steps were worked out from"
            f" {how.how}"
        )
        if not how.exact:
            text += ". These lines do not settle it: a step may be wrong by as much as was rounded"
        found.append(
            CurveFinding(severity="info" if how.exact else "warning", code="steps-rebuilt", text=text)
        )
    if records.log.impossible:
        text = (
            f"{records.log.impossible:,} lines name a step that no step can be (negative, not whole, 2^53 or"
            " more); they were left out"
        )
        found.append(CurveFinding(severity="warning", code="steps-impossible", text=text))
    if records.numbered is not None:
        text = (
            "the lines name an epoch and a loss, but no step: a step is an epoch here"
            if records.numbered == "epoch"
            else "the lines name a loss but no step, and the log has neither a progress bar nor the number of"
            " steps: lines were counted"
        )
        fix = "give a log with its progress bar, or trainer_state.json's values as a CSV with a column step"
        found.append(CurveFinding(severity="warning", code="steps-counted", text=text, fix=fix))
    return found


def about_weights_finite(columns: dict[str, Floats]) -> list[CurveFinding]:
    """An error if `param_norm` is logged and not finite: then the weights themselves are not."""
    norms = columns["param_norm"]
    bad = ~np.isfinite(norms) & (columns["has_param_norm"] > 0)
    if not bad.any():
        return []
    first = int(np.flatnonzero(bad)[0])
    since = "from the first logged step on" if first == 0 else f"from step {columns['step'][first]:.0f} on"
    text = (
        f"param_norm is there, but not finite at {int(bad.sum())} logged steps, {since}: the weights"
        " themselves hold values that are not finite"
    )
    return [
        CurveFinding(
            severity="error",
            code="weights-not-finite",
            text=text,
            steps=first_steps(columns["step"], np.flatnonzero(bad)),
            fix=NOT_THE_RATE,
        )
    ]


def about_weights_moving(columns: dict[str, Floats], learning: Learning) -> list[CurveFinding]:
    """A warning if `param_norm` never changes a digit, though enough learning rate was applied to move it."""
    norms = columns["param_norm"][np.isfinite(columns["param_norm"])]
    if len(norms) < 8 or np.ptp(norms) > 0 or learning.full_rate_steps < learning.enough_from:
        return []
    text = (
        f"param_norm is {norms[0]:.4f} at every one of {len(norms)} logged steps, to the last digit: the"
        " weights do not move"
    )
    return [
        CurveFinding(
            severity="warning",
            code="weights-do-not-move",
            text=text,
            fix="see who is trained: train.trained in the recipe, harness inspect on a checkpoint",
        )
    ]


def about_rates(columns: dict[str, Floats], recipe: Recipe) -> list[CurveFinding]:
    """A note if the log's learning rates are not those of the recipe."""
    steps, rates = columns["step"], columns["learning_rate"]
    known = np.isfinite(rates)
    expected = learning_rate(recipe.train.optimizer.schedule, steps[known])
    off = np.abs(rates[known] - expected) > 0.02 * np.maximum(expected, 1e-12)
    if not off.any():
        return []
    at = int(np.flatnonzero(off)[0])
    here = f"{rates[known][at]:.3g} at step {steps[known][at]:.0f}, not {expected[at]:.3g}"
    text = f"the log's learning rates are not those of recipe {recipe.name}: {here}; the log's count"
    return [
        CurveFinding(
            severity="info",
            code="rates-of-another-recipe",
            text=text,
            steps=[int(steps[known][at])],
            fix="--recipe NAME|FILE",
        )
    ]


def about_pace(pace: Throughput | None) -> list[CurveFinding]:
    """Warnings about stalls, slow steps, and a loader that sets the pace."""
    if pace is None:
        return []
    found = []
    if pace.stalls:
        at = int(np.argmax([pause for _, pause in pace.stalls]))
        end, longest = pace.stalls[at]
        begin = (
            f"between steps {pace.stalls_from[at]:,} and {end:,}"
            if at < len(pace.stalls_from)
            else f"before step {end:,}"
        )
        text = (
            f"training stood still {_times(len(pace.stalls))},"
            f" {'' if len(pace.stalls) == 1 else 'longest '}for {format_seconds(longest)} {begin} (saving,"
            " evaluating, a machine asleep, or a restart); that is no part of the pace"
        )
        found.append(
            CurveFinding(
                severity="warning",
                code="stalls",
                text=text,
                steps=[step for step, _ in pace.stalls][:FIRST_FEW],
            )
        )
    if pace.median_step_s > 60:
        text = (
            f"{format_seconds(pace.median_step_s)} a step: slower than any card on which it fits; memory that"
            " spills to the host (WSL2) does this"
        )
        found.append(
            CurveFinding(
                severity="warning",
                code="steps-slow",
                text=text,
                fix="harness plan --gpu NAME says what fits the card",
            )
        )
    if pace.data_share is not None and pace.data_share > 0.3:
        text = f"{100 * pace.data_share:.0f} % of the time was spent waiting for batches"
        found.append(
            CurveFinding(
                severity="warning", code="loader-sets-pace", text=text, fix="HARNESS_LOADER_WORKERS=4"
            )
        )
    return found


def about_events(spikes: list[Spike], jumps: list[Jump]) -> list[CurveFinding]:
    """Spikes and changepoints, one sentence each."""
    found = []
    if spikes:
        worst = max(spikes, key=lambda spike: spike.height)
        where = f"the highest {worst.top:.4g} at steps {worst.first_step} to {worst.last_step}"
        text = f"the loss spiked {_times(len(spikes))} and came back, {where}"
        found.append(
            CurveFinding(
                severity="info",
                code="spikes",
                text=text,
                steps=[spike.first_step for spike in spikes][:FIRST_FEW],
            )
        )
    if jumps:
        text = "the level of the loss changes at once: " + ", ".join(
            f"{jump.before:.4g} to {jump.after:.4g} at step {jump.step}" for jump in jumps[:3]
        )
        found.append(
            CurveFinding(
                severity="info",
                code="changepoints",
                text=text,
                steps=[jump.step for jump in jumps][:FIRST_FEW],
            )
        )
    return found


def about_loss(steps: Floats, losses: Floats, *, by_rate: bool) -> list[CurveFinding]:
    """An error if losses are not finite.

    `by_rate`: enough learning rate had been applied before the first of them to be the cause.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad):
        return []
    text = (
        f"the loss is not finite at {len(bad)} of {len(losses)} logged steps, first at step"
        f" {steps[bad[0]]:.0f}"
    )
    fix = "lower train.optimizer.schedule.peak, or look at the findings of harness stats"
    if not by_rate:
        text += "; hardly any learning rate had been applied by then, so it is not the cause: " + (
            "the weights, the devices or the data are"
            if bad[0]
            else "the weights, the devices or the data have it from the start"
        )
        fix = NOT_THE_RATE
    return [
        CurveFinding(
            severity="error", code="loss-not-finite", text=text, steps=first_steps(steps, bad), fix=fix
        )
    ]


def about_held_out(curve: HeldOut | None, lost: list[int]) -> list[CurveFinding]:
    """A warning if the loss on held-out data rises from its lowest value, or is `lost`: not finite.

    A note if it seems to rise and has too few points to tell.
    """
    if lost:
        text = f"the held-out loss is not finite at {_times_of(lost)}: those parameters are of no use"
        return [
            CurveFinding(severity="warning", code="held-out-not-finite", text=text, steps=lost[:FIRST_FEW])
        ]
    if curve is None or curve.points < 3 or curve.last - curve.lowest <= 0.05 * curve.lowest:
        return []
    count = len(curve.loss)
    ends = (
        f"the held-out loss was lowest at step {curve.lowest_at_step:,} ({curve.lowest:.4g}) and ends at"
        f" {curve.last:.4g}"
    )
    if count > 3 and curve.last - curve.lowest > _RISE_OF_FEW.get(count, _RISE) * _noise(curve):
        text = f"{ends}: what is learned after that step helps on the training data only"
        return [
            CurveFinding(severity="warning", code="held-out-rises", text=text, steps=[curve.lowest_at_step])
        ]
    if count <= max(_RISE_OF_FEW):
        text = f"{ends}: {count} points do not tell such a rise from noise"
        return [
            CurveFinding(severity="info", code="held-out-unsure", text=text, steps=[curve.lowest_at_step])
        ]
    return []


def _noise(curve: HeldOut) -> float:
    """The standard deviation of one held-out loss."""
    # A smooth curve has small second differences. Those of noise have a variance of 6 times its own.
    bends = np.abs(np.diff(np.array(curve.loss), n=2))
    if len(curve.loss) in _RISE_OF_FEW:
        return float(np.sqrt((bends**2).mean() / 6))
    return 1.4826 * float(np.median(bends)) / math.sqrt(6)


def _times_of(steps: list[int]) -> str:
    return f"step {steps[0]:,}" if len(steps) == 1 else f"{len(steps)} steps, the first of them {steps[0]:,}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def first_steps(steps: Floats, indices: npt.NDArray[np.intp]) -> list[int]:
    """The first few of the steps at `indices`, as a finding lists them."""
    return [int(steps[i]) for i in indices[:FIRST_FEW]]
