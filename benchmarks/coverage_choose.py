"""How often the intervals of `harness choose` hold the truth, and how often equal saves are told apart.

    python -m benchmarks.coverage_choose [--runs 500]

Printed: the share of sets of episodes whose 95 % interval holds the true mean; then the share of runs of
equal saves in which at least one is told apart from the best, beside that of the percentiles of a bootstrap
with as many comparisons as there are other saves. Exit code 1 if an interval of a world that is promised is
below 94 %, or if more than 5 % of the runs, and three times the noise of so many, tell equal saves apart.

A lognormal loss is printed and not promised: no interval from tens of episodes knows its tail.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np

from harness.choose.intervals import Floats, intervals

EPISODES = (5, 10, 19, 20, 30, 50, 100)
# Episodes and saves.
EQUAL = ((5, 5), (10, 10), (10, 30), (19, 30), (20, 2), (20, 10), (20, 30), (50, 10))
LEAST, WRONG = 0.94, 0.05
# Sets of episodes for each interval.
SETS = 4000


def drawn(world: str, random: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, float]:
    """(values of this world, their true mean)."""
    if world == "lognormal":
        return np.exp(random.standard_normal(shape)), math.exp(0.5)
    return (random.standard_normal(shape) if world == "normal" else random.standard_t(3, shape)), 0.0


def held(world: str, episodes: int, runs: int) -> float:
    """The share of intervals that hold the true mean."""
    values, truth = drawn(world, np.random.default_rng(0), (episodes, runs))
    found = intervals(values)
    return sum(each.low <= truth <= each.high for each in found) / runs  # type: ignore[operator]


def told_apart(episodes: int, saves: int, runs: int) -> tuple[float, float]:
    """The share of runs in which a save is told apart from the best although all are equal.

    Second: the same by percentiles of 1,000 resamples, for so many comparisons as there are other saves.
    """
    random, found, plain = np.random.default_rng(0), 0, 0
    for _ in range(runs):
        values = random.standard_normal((episodes, saves))
        best = int(np.argmin(values.mean(axis=0)))
        others = np.delete(values - values[:, [best]], best, axis=1)
        each = intervals(others, 1 - 0.05 / math.comb(saves, 2))
        found += any(one.low > 0 or one.high < 0 for one in each)  # type: ignore[operator]
        means = random.multinomial(episodes, np.full(episodes, 1 / episodes), size=1_000) @ others / episodes
        plain += bool((np.quantile(means, 0.025 / (saves - 1), axis=0) > 0).any())
    return found / runs, plain / runs


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=500)
    runs, failed = parser.parse_args().runs, False
    for world in ("normal", "t of 3 degrees", "lognormal"):
        for episodes in EPISODES:
            share = held(world, episodes, SETS)
            low = share < LEAST and world != "lognormal"
            failed |= low
            print(
                f"{100 * share:6.2f} %  {world}, {episodes} episodes{' BELOW 94 %' if low else ''}",
                flush=True,
            )
    for episodes, saves in EQUAL:
        share, plain = told_apart(episodes, saves, runs)
        failed |= share > WRONG + 3 * math.sqrt(WRONG * (1 - WRONG) / runs)
        said = f"{saves} equal saves, {episodes} episodes (percentiles, {saves - 1} comparisons:"
        print(f"{100 * share:6.2f} %  told apart: {said} {100 * plain:.1f} %)", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
