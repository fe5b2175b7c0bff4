"""What the values of a log give away beside their trend: gradients, weights, rates, pace, and what could not be read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.analyse.lines import Records
from harness.analyse.schedule import learning_rate
from harness.artifacts.curve import CurveFinding, Jump, Learning, Spike, Throughput
from harness.recipe import Recipe
from harness.units import format_seconds

Floats = npt.NDArray[np.float64]

FIRST_FEW = 10


def about_reading(records: Records, columns: dict[str, Floats]) -> list[CurveFinding]:
    """What was read otherwise than it stands there, and what is missing."""
    found = []
    if records.decimal_commas:
        found.append(CurveFinding(severity="info", code="decimal-commas", text="numbers are written with a decimal comma (0,1146) and were read so"))
    if records.torn:
        found.append(
            CurveFinding(severity="info", code="last-line-torn", text="the last line is cut off and was left out: the program was writing, or was killed")
        )
    if records.unreadable:
        text = f"{records.unreadable:,} lines name a step and a loss that could not be read; they were left out"
        found.append(CurveFinding(severity="warning", code="lines-unreadable", text=text))
    missing = [name for name in ("grad_norm", "param_norm") if not np.isfinite(columns[name]).any()]
    if missing:
        text = f"the log has no {' and no '.join(missing)}: it is not openpi's nor the harness's own, or was filtered"
        found.append(CurveFinding(severity="info", code="columns-missing", text=text))
    gaps = np.diff(columns["step"])
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    wide = np.flatnonzero(gaps > 3 * usual) if len(gaps) >= 8 else np.empty(0, int)
    if len(wide):
        found.append(
            CurveFinding(
                severity="info",
                code="steps-missing",
                text=f"{len(wide)} gap{'s' * (len(wide) != 1)} in the steps, of up to {gaps.max():,.0f} steps where {usual:,.0f} are usual",
                steps=_steps(columns["step"], wide),
            )
        )
    return found


def about_gradients(columns: dict[str, Floats], recipe: Recipe) -> list[CurveFinding]:
    """Gradients that are not finite, zero, clipped all the time, leaping or growing."""
    steps, norms = columns["step"], columns["grad_norm"]
    found = []
    bad = np.isinf(norms) | (np.isnan(norms) & np.isfinite(norms).any())
    if bad.any() and np.isfinite(columns["loss"][bad]).any():
        text = f"grad_norm is not finite at {int(bad.sum())} logged steps"
        found.append(CurveFinding(severity="warning", code="gradient-not-finite", text=text, steps=_steps(steps, np.flatnonzero(bad))))
    steps, norms = steps[np.isfinite(norms)], norms[np.isfinite(norms)]
    if not len(norms):
        return found
    zero = np.flatnonzero(norms == 0)
    if len(zero):
        text = f"grad_norm is exactly 0 at {len(zero)} of {len(norms)} logged steps: nothing was trained there"
        found.append(CurveFinding(severity="error", code="gradient-zero", text=text, steps=_steps(steps, zero), fix="see who is trained: harness inspect"))
    clip = recipe.train.optimizer.clip_norm
    over = float((norms > clip).mean())
    if over > 0.5:
        text = f"grad_norm is above the clip of {clip:g} at {100 * over:.0f} % of the logged steps: there the update has a fixed length, whatever the loss does"
        found.append(CurveFinding(severity="info", code="gradient-clipped", text=text))
    if len(norms) < 12:
        return found
    usual = float(np.median(norms)) or 1e-12
    near = np.array([np.median(norms[max(0, i - 10) : i + 11]) for i in np.flatnonzero(norms > 5 * usual)[:1000]])
    leaps = np.flatnonzero(norms > 5 * usual)[:1000][norms[norms > 5 * usual][:1000] > 5 * near] if len(near) else np.empty(0, int)
    if len(leaps):
        text = f"{len(leaps)} logged steps have a grad_norm of more than 5 times that around them, up to {norms[leaps].max():.4g} (usual {usual:.4g})"
        found.append(CurveFinding(severity="warning", code="gradient-leaps", text=text, steps=_steps(steps, leaps)))
    tenth = max(1, len(norms) // 10)
    growth = float(np.median(norms[-tenth:])) / (float(np.median(norms[:tenth])) or 1e-12)
    if growth > 10:
        text = f"grad_norm is {growth:.0f} times at the end what it was at the start"
        found.append(CurveFinding(severity="warning", code="gradient-grows", text=text, fix="lower train.optimizer.schedule.peak"))
    return found


def about_weights_moving(columns: dict[str, Floats], learning: Learning) -> list[CurveFinding]:
    """Whether `param_norm` stays the same to the last digit though enough was applied to move it."""
    norms = columns["param_norm"][np.isfinite(columns["param_norm"])]
    if len(norms) < 8 or np.ptp(norms) > 0 or learning.full_rate_steps < learning.enough_from:
        return []
    text = f"param_norm is {norms[0]:.4f} at every one of {len(norms)} logged steps, to the last digit: the weights do not move"
    return [
        CurveFinding(
            severity="warning", code="weights-do-not-move", text=text, fix="see who is trained: train.trained in the recipe, harness inspect on a checkpoint"
        )
    ]


def about_rates(columns: dict[str, Floats], recipe: Recipe) -> list[CurveFinding]:
    """Whether the rates that the log gives are those of the recipe."""
    steps, rates = columns["step"], columns["learning_rate"]
    known = np.isfinite(rates)
    expected = learning_rate(recipe.train.optimizer.schedule, steps[known])
    off = np.abs(rates[known] - expected) > 0.02 * np.maximum(expected, 1e-12)
    if not off.any():
        return []
    at = int(np.flatnonzero(off)[0])
    here = f"{rates[known][at]:.3g} at step {steps[known][at]:.0f}, not {expected[at]:.3g}"
    text = f"the log's learning rates are not those of recipe {recipe.name}: {here}; the log's count"
    return [CurveFinding(severity="info", code="rates-of-another-recipe", text=text, steps=[int(steps[known][at])], fix="--recipe NAME|FILE")]


def about_pace(pace: Throughput | None) -> list[CurveFinding]:
    """Stalls, and a loader that sets the pace."""
    if pace is None:
        return []
    found = []
    if pace.stalls:
        longest = max(pause for _, pause in pace.stalls)
        text = f"training stood still {_times(len(pace.stalls))}, at most for {format_seconds(longest)} (saving, evaluating, a machine asleep, or a restart)"
        found.append(CurveFinding(severity="warning", code="stalls", text=text, steps=[step for step, _ in pace.stalls][:FIRST_FEW]))
    if pace.median_step_s > 60:
        text = f"{format_seconds(pace.median_step_s)} a step: slower than any card on which it fits; memory that spills to the host (WSL2) does this"
        found.append(CurveFinding(severity="warning", code="steps-slow", text=text, fix="harness plan --gpu NAME says what fits the card"))
    if pace.data_share is not None and pace.data_share > 0.3:
        text = f"{100 * pace.data_share:.0f} % of the time was spent waiting for batches"
        found.append(CurveFinding(severity="warning", code="loader-sets-pace", text=text, fix="HARNESS_LOADER_WORKERS=4"))
    return found


def about_events(spikes: list[Spike], jumps: list[Jump]) -> list[CurveFinding]:
    """Spikes and changepoints in a sentence each."""
    found = []
    if spikes:
        worst = max(spikes, key=lambda spike: spike.height)
        where = f"the highest {worst.top:.4g} at steps {worst.first_step} to {worst.last_step}"
        text = f"the loss spiked {_times(len(spikes))} and came back, {where}"
        found.append(CurveFinding(severity="info", code="spikes", text=text, steps=[spike.first_step for spike in spikes][:FIRST_FEW]))
    if jumps:
        text = "the level of the loss changes at once: " + ", ".join(f"{jump.before:.4g} to {jump.after:.4g} at step {jump.step}" for jump in jumps[:3])
        found.append(CurveFinding(severity="info", code="changepoints", text=text, steps=[jump.step for jump in jumps][:FIRST_FEW]))
    return found


def about_loss(steps: Floats, losses: Floats) -> list[CurveFinding]:
    """Losses that are not finite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad):
        return []
    text = f"the loss is not finite at {len(bad)} of {len(losses)} logged steps, first at step {steps[bad[0]]:.0f}"
    fix = "lower train.optimizer.schedule.peak, or look at the findings of harness stats"
    return [CurveFinding(severity="error", code="loss-not-finite", text=text, steps=_steps(steps, bad), fix=fix)]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _steps(steps: Floats, indices: npt.NDArray[np.intp]) -> list[int]:
    return [int(steps[i]) for i in indices[:FIRST_FEW]]
