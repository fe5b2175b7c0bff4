"""How often the intervals of an evaluation hold the truth, and how often the sequential test errs.

    python benchmarks/coverage.py [--runs 4000]

Each world has a truth and draws evaluations from it. Printed: the share of evaluations whose 95 % interval
holds the truth. Exit code 1 if one of a world that is promised is below 94 %, if one end of the interval for
independent episodes is wrong in more than 3.3 % of the cases, or if the sequential test errs more often than
it says.

Printed and not promised are the score interval, which decides nothing, and tasks like these with rare, very
hard ones among them: no interval from ten tasks knows of a task that it has not seen.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.evaluate.intervals import Ends, independent, newcombe, of_other_tasks, score, wilson
from harness.evaluate.paired import Cells, newcombe_paired, tango
from harness.evaluate.rates import counted
from harness.evaluate.sequential import ALPHA, follow
from harness.evaluate.verdict import decide

Draw = Callable[[np.random.Generator], tuple[Ends | None, float]]
PROMISED = 0.94
# Of one end of an interval, whose errors are 2.5 % by its name. The most of 12,000 random worlds with 50 to
# 2,000 episodes on a side and rates from 5 to 99 %.
TOO_HIGH = 0.033
# Episodes on each side, and the other side's rate.
UNLIKE_SIZES = (
    (500, 2000, 0.97),
    (500, 2000, 0.99),
    (2000, 500, 0.988),
    (2000, 50, 0.99),
    (2000, 50, 0.9),
    (50, 2000, 0.96),
    (50, 2000, 0.3),
    (200, 100, 0.99),
    (50, 131, 0.9888),
    (174, 105, 0.9597),
    (100, 100, 0.5),
    (50, 500, 0.07),
)


class World(NamedTuple):
    """A truth. `draw` makes one evaluation: its interval, and what it should hold."""

    name: str
    draw: Draw
    promised: bool = True


def _rate(rates: list[float], episodes: int) -> Draw:
    """Wilson over tasks of these rates."""

    def draw(random: np.random.Generator) -> tuple[Ends, float]:
        k = random.binomial(episodes, rates).sum()
        return wilson(float(k), episodes * len(rates)), float(np.mean(rates))

    return draw


def _uneven(rates: list[float], episodes: list[int]) -> Draw:
    """Wilson over tasks of these rates, of which each has its own number of episodes."""

    def draw(random: np.random.Generator) -> tuple[Ends, float]:
        counts = random.binomial(episodes, rates)
        of_tasks = [[1.0] * k + [0.0] * (n - k) for k, n in zip(counts, episodes, strict=True)]
        return wilson(*counted(of_tasks)), float(np.mean(rates))

    return draw


def _other_tasks(tasks: int, mean: float, alike: float, episodes: int = 50) -> Draw:
    """Tasks drawn from a Beta distribution of this mean; the larger `alike`, the more they are so."""

    def draw(random: np.random.Generator) -> tuple[Ends | None, float]:
        found = random.binomial(episodes, random.beta(mean * alike, (1 - mean) * alike, tasks)) / episodes
        these = wilson(found.sum() * episodes, tasks * episodes)
        return of_other_tasks(found, these, tasks * episodes), mean

    return draw


def _independent(p: float, n: int, q: float, m: int, interval: Callable[..., Ends]) -> Draw:
    def draw(random: np.random.Generator) -> tuple[Ends, float]:
        a, b = random.binomial(n, p), random.binomial(m, q)
        return interval(float(a), n, float(b), m), p - q

    return draw


def _paired(p: float, q: float, likeness: float, n: int, interval: Callable[[Cells], Ends]) -> Draw:
    """Two policies on n scenes, whose hardness decides with this probability."""
    both = likeness * min(p, q) + (1 - likeness) * p * q
    law = [both, p - both, q - both, 1 - p - q + both]

    def draw(random: np.random.Generator) -> tuple[Ends, float]:
        return interval(Cells(*map(float, random.multinomial(n, law)))), p - q

    return draw


def too_high(n: int, m: int, q: float, gap: float, interval: Callable[..., Ends]) -> float:
    """The exact probability that the low end of n against m episodes lies above the true difference `gap`.

    Their rate is `q`, ours `q + gap`. With the margin as gap it is that of a wrong "reproduces".
    """
    ours, theirs = _binomial(n, q + gap), _binomial(m, q)
    total = 0.0
    for b in np.flatnonzero(theirs > 1e-9):
        low, high = 0, n + 1
        while low < high:
            # The low end rises with our successes.
            middle = (low + high) // 2
            above = interval(float(middle), n, float(b), m).low > gap
            low, high = (low, middle) if above else (middle + 1, high)
        total += float(theirs[b] * ours[low:].sum())
    return total


def _binomial(n: int, p: float) -> np.ndarray:
    """The probability of each count from 0 to n."""
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    k = np.arange(n + 1)
    return np.exp(np.array(logs) + k * math.log(p) + (n - k) * math.log1p(-p))


UNEVEN = [0.99, 0.98, 1.0, 0.96, 0.8, 0.99, 0.97, 0.94, 1.0, 0.9]
WORLDS = (
    World("one task, 50 episodes, 90 %", _rate([0.9], 50)),
    World("a suite, 500 episodes, 98 %", _rate([0.98] * 10, 50)),
    World("a suite of uneven tasks", _rate(UNEVEN, 50)),
    World("four suites, 2,000 episodes, 96.85 %", _rate([0.9685] * 40, 50)),
    World(
        "uneven: nine tasks of 50 at 99 %, one of 5 at 50 %",
        _uneven([0.99] * 9 + [0.5], [50] * 9 + [5]),
        False,
    ),
    World(
        "uneven: 35 tasks of 50 at 98 %, five of 10 at 90 %",
        _uneven([0.98] * 35 + [0.9] * 5, [50] * 35 + [10] * 5),
        False,
    ),
    World("independent: 98.8 % against 96 %, 500 each", _independent(0.988, 500, 0.96, 500, independent)),
    World(
        "independent: 96.85 % against 95 %, 2,000 each", _independent(0.9685, 2000, 0.95, 2000, independent)
    ),
    World("independent: 96 % against 98 %, 500 and 2,000", _independent(0.96, 500, 0.98, 2000, independent)),
    World("Newcombe: 97 % against 99 %, 2,000 and 50", _independent(0.97, 2000, 0.99, 50, newcombe), False),
    World("score: 98 % against 96 %, 500 each", _independent(0.98, 500, 0.96, 500, score), promised=False),
    World("pairs: 98 % and 96 %, alike 0.3", _paired(0.98, 0.96, 0.3, 500, newcombe_paired)),
    World("pairs: 92 % and 92 %, alike 0.6", _paired(0.92, 0.92, 0.6, 500, newcombe_paired)),
    World("pairs: 60 % and 50 %, 50 scenes", _paired(0.6, 0.5, 0.2, 50, newcombe_paired)),
    World("pairs, Tango: 98 % and 96 %, alike 0.3", _paired(0.98, 0.96, 0.3, 500, tango)),
    World("tasks like these: 40, mean 96.85 %, alike", _other_tasks(40, 0.9685, 80)),
    World("tasks like these: 40, mean 90 %, uneven", _other_tasks(40, 0.9, 20)),
    World("tasks like these: 10, mean 96.85 %, alike", _other_tasks(10, 0.9685, 80)),
    World("tasks like these: 10, mean 90 %, uneven", _other_tasks(10, 0.9, 20)),
    World("tasks like these: 10, mean 60 %, uneven", _other_tasks(10, 0.6, 5)),
    World("tasks like these: 40, mean 96.85 %, uneven", _other_tasks(40, 0.9685, 20), promised=False),
    World("tasks like these: 10, mean 96.85 %, uneven", _other_tasks(10, 0.9685, 20), promised=False),
    World("tasks like these: 10, mean 96.85 %, rare hard ones", _other_tasks(10, 0.9685, 5), promised=False),
)
SMALL = tuple(world for world in WORLDS if world.promised and "like these" not in world.name)
SLOW = tuple(world for world in WORLDS if world.promised and "like these: 10" in world.name)


def held(world: World, runs: int, seed: int) -> int:
    """How many of so many evaluations hold the truth."""
    random, count = np.random.default_rng(seed), 0
    for _ in range(runs):
        ends, truth = world.draw(random)
        count += ends is not None and ends.low - 1e-12 <= truth <= ends.high + 1e-12
    return count


def errs(difference: float, margin: float, wrong: set[str], runs: int, seed: int, pairs: int = 2000) -> int:
    """How often the sequential test gives one of the wrong words, looked at after every pair."""
    random, count = np.random.default_rng(seed), 0
    share = max(0.06, abs(difference))
    law = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    for _ in range(runs):
        drawn = random.choice([1.0, -1.0, 0.0], size=pairs, p=law)
        count += follow(drawn.tolist(), margin).verdict in wrong
    return count


def words(p: float, q: float, likeness: float, n: int, runs: int) -> Counter[str]:
    """How often each word is said of pairs of these rates, with a margin of two points."""
    draw, random = _paired(p, q, likeness, n, newcombe_paired), np.random.default_rng(0)
    return Counter(decide(ends, 0.02) for ends, _ in (draw(random) for _ in range(runs)) if ends)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=4000)
    runs, failed = parser.parse_args().runs, False
    for world in WORLDS:
        share = held(world, runs, seed=0) / runs
        low = world.promised and share < PROMISED
        failed |= low
        said = " BELOW 94 %" if low else "" if world.promised else " (not promised)"
        print(f"{100 * share:6.2f} %  {world.name}{said}")
    for p, q, wrong_words in (
        (0.95, 0.97, ("reproduces", "above")),
        (0.97, 0.97, ("below", "above")),
        (0.6, 0.62, ("reproduces", "above")),
    ):
        found = words(p, q, 0.4, 2000, runs)
        share = sum(found[word] for word in wrong_words) / runs
        failed |= share > 1 - PROMISED
        said = ", ".join(f"{word} {100 * count / runs:.1f} %" for word, count in found.most_common())
        print(f"{100 * share:6.2f} %  wrong of 2,000 pairs, {100 * p:g} % and {100 * q:g} %: {said}")
    for n, m, q in UNLIKE_SIZES:
        share, alone = (too_high(n, m, q, -0.02, each) for each in (independent, newcombe))
        failed |= share > TOO_HIGH
        said = f"{n:,} against {m:,} episodes, {100 * q - 2:g} % and {100 * q:g} %"
        print(f"{100 * share:6.2f} %  wrongly reproduces: {said} (Newcombe alone {100 * alone:.2f} %)")
    for difference, wrong, limit in (
        (0.0, {"below", "above"}, ALPHA),
        (-0.02, {"reproduces"}, ALPHA / 2),
        (-0.03, {"reproduces", "above"}, ALPHA),
    ):
        count = min(runs, 1000)
        share = errs(difference, 0.02, wrong, count, seed=0) / count
        failed |= share > limit
        truth = f"true difference {100 * difference:+.0f} points"
        print(f"{100 * share:6.2f} %  wrong in 2,000 looks, {truth}, at most {100 * limit:g} %")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
