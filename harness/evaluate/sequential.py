"""The paired test that may be looked at after every pair, and stops as soon as it knows.

An e-process is evidence that is at least 1 / alpha at any time with probability alpha at most, if there is
nothing to find (Ville's inequality). So one may stop whenever one likes. Pairs must come in an order that was
fixed beforehand and mixes the tasks; episodes that succeed end earlier, so the order in which they finish is
none.

Sources: Robbins 1970 for the mixture over the discordant pairs; Waudby-Smith and Ramdas 2024 (Journal of the
Royal Statistical Society B 86, 1-27) for betting on a bounded mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from harness.artifacts.evaluation import Sequential, Word

ALPHA = 0.05
# Shares of the largest bet; their mean is the evidence. Small ones suit rare differences.
_BETS = tuple(0.95 * 0.75**k for k in range(20))


def log_e_differs(ours: int, theirs: int) -> float:
    """The logarithm of the evidence that discordant pairs are not equally often ours and theirs.

    e = B(b + ½, c + ½) / B(½, ½) · 2^(b + c), the mixture of likelihood ratios over Jeffreys' prior.
    """
    return (
        math.lgamma(ours + 0.5)
        + math.lgamma(theirs + 0.5)
        - math.lgamma(ours + theirs + 1)
        - math.log(math.pi)
        + (ours + theirs) * math.log(2)
    )


class _Bets(NamedTuple):
    """The logarithms of the wealth of each bet that the mean difference is above -margin."""

    margin: float
    wealth: list[float]

    def take(self, difference: float) -> None:
        largest = 1 / (1 - self.margin)
        for k, share in enumerate(_BETS):
            self.wealth[k] += math.log1p(share * largest * (difference + self.margin))

    def log_e(self) -> float:
        top = max(self.wealth)
        return top + math.log(sum(math.exp(each - top) for each in self.wealth) / len(self.wealth))


def follow(differences: Iterable[float], margin: float, alpha: float = ALPHA) -> Sequential:
    """The test over differences (ours less theirs: -1, 0 or 1) in the asked order, up to where it stops.

    "below" and "above" at 1 / alpha; "reproduces" at 2 / alpha, for that question has one side.
    """
    bets = _Bets(margin, [0.0] * len(_BETS))
    ours = theirs = pairs = 0
    word: Word | None = None
    for difference in differences:
        pairs += 1
        ours, theirs = ours + (difference > 0), theirs + (difference < 0)
        bets.take(difference)
        if bets.log_e() >= math.log(2 / alpha):
            word = "reproduces"
        elif log_e_differs(ours, theirs) >= math.log(1 / alpha):
            word = "above" if ours > theirs else "below"
        if word:
            break
    return Sequential(
        alpha=alpha,
        pairs=pairs,
        e_differs=_exp(log_e_differs(ours, theirs)),
        e_margin=_exp(bets.log_e()),
        stopped_at=pairs if word else None,
        verdict=word,
    )


def _exp(logarithm: float) -> float:
    """The evidence, no larger than a file of numbers can hold."""
    return math.exp(min(logarithm, 700.0))
