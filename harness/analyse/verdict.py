"""The verdict on a curve, its reasons, and what would be needed to be sure."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from harness.analyse.events import CERTAIN, DIVERGED_RATIO, Rise
from harness.analyse.schedule import steps_until
from harness.analyse.trend import ERROR_RATE, MIN_POINTS
from harness.artifacts.curve import Learning, Trend
from harness.recipe.schema import Recipe

Answer = Literal["learning", "not learning", "diverged", "inconclusive"]

# A fall of less than the first share of the loss is no learning, however certain. A healthy run would have
# shown a fall of more than the second.
SMALLEST_FALL, EXPECTED_FALL = 0.01, 0.20
# If the loss seems to fall, the run is not called "not learning". Seems: a flat run does so less often than
# this.
SEEMS = 0.05


class Facts(NamedTuple):
    """The facts that the verdict rests on.

    `usable` points count for the trend. `lost_at` is the step from which the loss is not finite to the end.
    """

    recipe: Recipe
    first_step: int
    last_step: int
    first_loss: float
    last_loss: float
    points: int
    usable: int
    learning: Learning
    trend: Trend | None
    rise: Rise | None
    p_rise: float
    lost_at: int | None
    still: bool
    mixed: bool


class Verdict(NamedTuple):
    answer: Answer
    reasons: list[str]
    needed: list[str]


def judge(facts: Facts) -> Verdict:
    """The first verdict that holds.

    The order is: diverged, cannot tell, learning, not learning, cannot tell.
    """
    if facts.lost_at is not None:
        return Verdict("diverged", [f"the loss is not finite from step {facts.lost_at} to the end"], [])
    rise = facts.rise
    # Unless the loss explodes, a negligible learning rate cannot have made it diverge.
    possible = rise is not None and (
        rise.p > CERTAIN or facts.learning.full_rate_steps >= facts.learning.negligible_below
    )
    if rise is not None and possible and rise.diverged and facts.points >= MIN_POINTS:
        how = (
            f"a flat loss does so in at most {100 * rise.p:.2g} % of runs"
            if rise.p <= CERTAIN
            else f"all of the last {rise.tail} points are far above it"
        )
        where = f"{rise.ratio:.1f} times its best level of {rise.best:.4g} (near step {rise.best_step})"
        return Verdict("diverged", [f"the loss ends at {rise.end:.4g}, {where}; {how}"], [])
    if facts.mixed:
        return Verdict("inconclusive", ["runs are mixed in this log"], ["the log of one run"])
    unsure = _too_little(facts)
    if unsure is not None:
        return unsure
    assert facts.trend is not None
    if _falls(facts.trend):
        return _learning(facts, facts.trend)
    return _no_fall(facts, facts.trend)


def _too_little(facts: Facts) -> Verdict | None:
    """Inconclusive, if no trend could be evidence: too few points, or hardly any learning rate applied."""
    learning, reasons, needed = facts.learning, [], []
    if facts.usable < MIN_POINTS or facts.trend is None:
        count = f"{facts.points} point{'s' * (facts.points != 1)}"
        reasons.append(
            f"{count}, of which {facts.usable} can show a trend: with fewer than {MIN_POINTS} noise cannot"
            " be told from a trend"
        )
        needed.append(f"at least {MIN_POINTS} logged points, better 40")
    if learning.full_rate_steps < learning.negligible_below:
        warming = (
            f", in a warm-up of {learning.warmup_steps:,} steps"
            if facts.last_step < learning.warmup_steps
            else ""
        )
        rate = f"{learning.last:.1e} at step {facts.last_step}{warming} (peak {learning.peak:.1e})"
        change = (
            f"the change of the loss from {facts.first_loss:.4g} to {facts.last_loss:.4g}"
            if facts.points > 1
            else "the loss"
        )
        reasons.append(
            f"hardly any learning rate has been applied: it is {rate}; together the logged steps equal"
            f" {learning.full_rate_steps:.2g} steps at the peak rate, so {change} is noise between batches,"
            " not learning"
        )
        needed += _until(
            facts, learning.negligible_below, "the first step at which a change could be learning"
        )
    if not reasons:
        return None
    if facts.trend is not None:
        reasons.append(_described(facts.trend))
    needed += _until(facts, learning.enough_from, "by which a healthy run shows")
    return Verdict("inconclusive", reasons, needed)


def _until(facts: Facts, amount: float, why: str) -> list[str]:
    step = steps_until(facts.recipe.train.optimizer.schedule, facts.first_step, amount)
    return [f"a log up to step {step:,} ({why}; {facts.learning.source})"] if step is not None else []


def _falls(trend: Trend) -> bool:
    by_ends = (trend.start_loss - trend.end_loss) / (abs(trend.start_loss) or 1.0)
    return trend.p_flat <= ERROR_RATE and by_ends >= SMALLEST_FALL


def _learning(facts: Facts, trend: Trend) -> Verdict:
    rate = f"{100 * trend.p_flat:.2g} % of runs (stated rate {100 * ERROR_RATE:g} %)"
    reasons = [_described(trend), f"a flat loss with such noise falls so clearly in at most {rate}"]
    reasons.append(
        f"the learning rate applied comes to {facts.learning.full_rate_steps:,.0f} steps at the peak rate"
        f" ({facts.learning.source})"
        if facts.learning.negligible_below > 0
        else "the log names no learning rate, so how much of it was applied is unknown"
    )
    return Verdict("learning", reasons, [])


def _no_fall(facts: Facts, trend: Trend) -> Verdict:
    learning, reasons = facts.learning, [_described(trend)]
    if facts.p_rise <= ERROR_RATE and trend.end_loss > trend.start_loss:
        reasons.append(
            f"the loss rises: a flat one would do so in {100 * facts.p_rise:.2g} % of runs, though not to"
            f" {DIVERGED_RATIO:g} times its best level"
        )
        return Verdict("not learning", reasons, [])
    excluded = trend.fall_high < EXPECTED_FALL and (
        trend.p_flat > SEEMS or trend.fall_high < EXPECTED_FALL / 2
    )
    if facts.still and trend.p_flat > SEEMS:
        reasons.append("the weights do not move")
        return Verdict("not learning", reasons, [])
    if learning.full_rate_steps < learning.enough_from:
        applied = f"only {learning.full_rate_steps:,.0f} steps at the peak rate have been applied"
        reasons.append(f"{applied}, and a healthy run need not show before {learning.enough_from:,.0f}")
        return Verdict(
            "inconclusive",
            reasons,
            [
                *_until(facts, learning.enough_from, "by which a healthy run shows"),
                *_points_needed(facts, trend),
            ],
        )
    if excluded:
        applied = f"{learning.full_rate_steps:,.0f} steps at the peak rate should have brought one"
        reasons.append(
            f"a fall of {100 * EXPECTED_FALL:g} % or more over these steps is excluded, and {applied}"
        )
        return Verdict("not learning", reasons, [])
    reasons.append(f"the noise hides a fall of up to {100 * trend.fall_high:.0f} %")
    return Verdict("inconclusive", reasons, _points_needed(facts, trend))


def _points_needed(facts: Facts, trend: Trend) -> list[str]:
    """The length of log at which a fall would show in nine runs of ten.

    The fall is EXPECTED_FALL, or the observed one if that is larger.
    """
    half = (trend.fall_high - trend.fall_low) / 2
    target = max(EXPECTED_FALL, trend.fall)
    # From a two-sided 95 % interval to a one-sided one of 1 % with a power of 90 %.
    factor = (half / 1.96 * (2.33 + 1.28) / target) ** 2
    if not math.isfinite(factor) or factor <= 1:
        return ["a longer log"]
    points = math.ceil(facts.usable * factor)
    every = (facts.last_step - facts.first_step) / max(1, facts.points - 1)
    return [
        f"about {points:,} points at this noise, {_round(points * every):,} steps at this interval, to see a"
        f" fall of {100 * target:.0f} %"
    ]


def _round(value: float) -> int:
    digits = max(0, len(str(int(value))) - 2)
    return round(value / 10**digits) * 10**digits


def _described(trend: Trend) -> str:
    memory = f", autocorrelation {trend.autocorrelation:.2f}" if trend.autocorrelation > 0.2 else ""
    interval = f"95 % interval {100 * trend.fall_low:.1f} % to {100 * trend.fall_high:.1f} %"
    return (
        f"loss {trend.start_loss:.4g} at the start, {trend.end_loss:.4g} at the end; a straight line falls by"
        f" {100 * trend.fall:.1f} % ({interval}); noise"
        f" {100 * trend.noise / (abs(trend.start_loss) or 1.0):.1f} % a point{memory}"
    )
