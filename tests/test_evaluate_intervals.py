"""Tests that intervals and tests equal those of other programs, and hold the truth as often as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import coverage
from harness.evaluate.intervals import Ends, independent, newcombe, of_other_tasks, score, wilson
from harness.evaluate.paired import Cells, mcnemar, newcombe_paired, tango

GOLDEN: dict[str, list[Any]] = json.loads((Path(__file__).parent / "golden" / "intervals.json").read_text())
EXACT = 1e-9


def test_wilson_equals_statsmodels() -> None:
    for k, n, level, low, high in GOLDEN["wilson"]:
        assert wilson(k, n, level) == pytest.approx((low, high), abs=EXACT)


def test_newcombe_equals_statsmodels() -> None:
    for a, n, b, m, level, low, high in GOLDEN["newcombe"]:
        assert newcombe(a, n, b, m, level) == pytest.approx((low, high), abs=EXACT)


def test_the_score_interval_equals_its_definition_solved_by_scipy() -> None:
    for a, n, b, m, level, low, high in GOLDEN["score"]:
        assert score(a, n, b, m, level) == pytest.approx((low, high), abs=EXACT)


def test_the_score_interval_without_skewness_equals_an_example_of_its_author() -> None:
    """5 of 56 against 0 of 29 in the manual of ratesci (R), whose ends have four places."""
    assert score(5, 56, 0, 29, skewness=True) == pytest.approx((-0.0186, 0.1867), abs=1e-4)


@pytest.mark.parametrize(("n", "m", "q"), [(2000, 500, 0.988), (2000, 50, 0.99), (50, 2000, 0.3)])
def test_a_wrong_low_end_is_rare_whatever_the_sizes(n: int, m: int, q: float) -> None:
    """Exact: of rates that are two points apart, "reproduces" is said in 3.3 % of the cases at most."""
    assert coverage.too_high(n, m, q, -0.02, independent) <= coverage.TOO_HIGH


def test_newcombes_interval_alone_errs_more_often() -> None:
    assert coverage.too_high(2000, 50, 0.99, -0.02, newcombe) > 0.05


def test_mcnemar_equals_scipy_and_statsmodels() -> None:
    for b, c, p in GOLDEN["mcnemar"]:
        assert mcnemar(b, c) == pytest.approx(p, abs=EXACT)


def test_newcombe_for_pairs_equals_its_definition_with_the_limits_of_statsmodels() -> None:
    for *cells, level, low, high in GOLDEN["newcombe_paired"]:
        assert newcombe_paired(Cells(*cells), level) == pytest.approx((low, high), abs=EXACT)


def test_newcombe_for_pairs_equals_his_own_example() -> None:
    """Newcombe 1998, Statistics in Medicine 17, 2635: method 10 of 36, 12, 2, 0."""
    assert newcombe_paired(Cells(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_tango_equals_another_program() -> None:
    for *cells, level, low, high in GOLDEN["tango"]:
        assert tango(Cells(*cells), level) == pytest.approx((low, high), abs=EXACT)


def test_mcnemar_of_thousands_of_scenes_neither_overflows_nor_vanishes() -> None:
    assert mcnemar(1500, 1500) == 1.0
    assert 0 < mcnemar(1600, 1400) < 3e-4
    assert 0 <= mcnemar(0, 5000) < 1e-300
    assert mcnemar(500, 501) == pytest.approx(mcnemar(501, 500))


def test_six_to_nothing_is_the_least_that_mcnemar_tells_apart() -> None:
    assert mcnemar(6, 0) < 0.05 < mcnemar(5, 0)


def test_no_episode_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert score(0, 0, 5, 10) == (-1.0, 1.0)
    assert newcombe_paired(Cells(0, 0, 0, 0)) == tango(Cells(0, 0, 0, 0)) == (-1.0, 1.0)


def test_ends_lie_within_their_range_and_around_the_estimate_whatever_the_counts() -> None:
    for n, m in ((1, 1), (3, 50), (50, 50)):
        for a in range(n + 1):
            for b in range(0, m + 1, max(1, m // 5)):
                for ends in (newcombe(a, n, b, m), score(a, n, b, m), independent(a, n, b, m)):
                    assert -1 - EXACT <= ends.low <= a / n - b / m + EXACT
                    assert a / n - b / m - EXACT <= ends.high <= 1 + EXACT


def test_tasks_like_these_have_a_wider_interval_than_these_tasks() -> None:
    rates = np.array([1.0, 0.98, 0.9, 1.0, 0.6, 0.96, 1.0, 0.94, 0.88, 1.0])
    these = wilson(rates.sum() * 50, 500)
    others = of_other_tasks(rates, these, 500)
    assert others is not None
    assert others.low < these.low - 0.05
    assert others.high >= these.high
    assert of_other_tasks(rates, these, 500) == others


def test_tasks_that_are_all_alike_leave_the_interval_of_these_tasks() -> None:
    assert of_other_tasks(np.ones(10), Ends(0.99, 1.0), 500) == (0.99, 1.0)


def test_few_tasks_say_nothing_of_others() -> None:
    assert of_other_tasks(np.array([0.9, 1.0, 0.8]), Ends(0.8, 1.0), 150) is None


@pytest.mark.parametrize("world", [*coverage.SMALL, coverage.SLOW[0]], ids=lambda world: world.name)
def test_intervals_hold_the_truth_as_often_as_they_say(world: coverage.World) -> None:
    """A small count: benchmarks/coverage.py has the figures. Three standard errors below 94 % fail."""
    runs = 100 if world in coverage.SLOW else 1000
    held = coverage.held(world, runs, seed=1)
    assert held / runs >= 0.94 - 3 * (0.94 * 0.06 / runs) ** 0.5


def test_tasks_of_few_episodes_among_many_make_the_interval_no_shorter_than_they_allow() -> None:
    """By the number of episodes alone it held the truth in 72 and in 87 % of the cases."""
    uneven = [world for world in coverage.WORLDS if world.name.startswith("uneven")]
    assert len(uneven) == 2
    assert all(coverage.held(world, 1000, seed=0) >= 890 for world in uneven)
