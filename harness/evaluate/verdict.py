"""The verdict on a difference of rates: which word it earns, and how many episodes would decide."""

from __future__ import annotations

import math
from typing import NamedTuple

from harness.artifacts.evaluation import Word
from harness.evaluate.compare import Gap
from harness.evaluate.intervals import Ends, normal_quantile

MARGIN = 0.02
POWER = 0.8


class Needed(NamedTuple):
    """How many episodes would decide with a power of 80 % if the difference is as measured; and in words."""

    episodes: int | None
    words: str


class Bounds(NamedTuple):
    """The interval as measured, and as it were with every unmeasured episode a failure or a success."""

    ends: Ends
    if_failures: Ends
    if_successes: Ends


def decide(ends: Ends, margin: float) -> Word:
    """The word for an interval of our rate less theirs.

    "reproduces": it excludes a rate lower by the margin, and is not wholly above. "below": it is wholly below
    0, and reaches the margin. "above": it is wholly above 0, and reaches the margin.
    """
    if ends.low > 0 and ends.high > margin:
        return "above"
    if ends.low > -margin:
        return "reproduces"
    return "below" if ends.high < 0 else "inconclusive"


def with_unmeasured(bounds: Bounds, margin: float, unmeasured: int) -> Word:
    """The word if that many episodes were asked and not measured.

    They forbid "reproduces". "below" stands if it would with all of them successes, "above" if it would with
    all of them failures.
    """
    word = decide(bounds.ends, margin)
    if not unmeasured:
        return word
    if word == "below" and decide(bounds.if_successes, margin) == "below":
        return "below"
    if word == "above" and decide(bounds.if_failures, margin) == "above":
        return "above"
    return "inconclusive"


def needed(gap: Gap, margin: float, level: float, *, paired_share: float | None, fixed: bool) -> Needed:
    """How many episodes of ours, in all, would decide.

    `paired_share` is the share of discordant scenes, for pairs. `fixed`: their episodes cannot become more.
    """
    d = gap.difference
    distance = max(d + margin, -d)
    z = normal_quantile(level) + normal_quantile(2 * POWER - 1)
    if paired_share is not None:
        n = gap.ours.episodes
        # With no discordant scene seen, there may still be some.
        share = (paired_share * n + 1) / (n + 2)
        return _words(math.ceil(z * z * max(share - d * d, 1 / (n + 2)) / distance**2), "pairs of episodes")
    ours, theirs = (_variance(each.successes, each.episodes) for each in (gap.ours, gap.theirs))
    if not fixed:
        return _words(math.ceil(z * z * (ours + theirs) / distance**2), "episodes on each side")
    left = (distance / z) ** 2 - theirs / gap.theirs.episodes
    if left <= 0:
        half = 100 * normal_quantile(level) * math.sqrt(theirs / gap.theirs.episodes)
        return Needed(
            None,
            f"no number of episodes would decide: the {gap.theirs.episodes:,.0f} published ones alone leave"
            f" ±{half:.1f} points",
        )
    return _words(math.ceil(ours / left), "episodes")


def _words(count: int, of: str) -> Needed:
    return Needed(count, f"about {count:,} {of} would decide (80 % power, if the difference is as measured)")


def _variance(successes: float, episodes: float) -> float:
    """The variance of one outcome, never 0: two successes and two failures are added."""
    rate = (successes + 2) / (episodes + 4)
    return rate * (1 - rate)
