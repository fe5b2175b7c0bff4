"""Tests which episodes are asked, that their order is fixed beforehand, and that workers share them."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from harness.artifacts.episodes import Key
from harness.errors import HarnessError
from harness.evaluate.claims import CLAIMS, OPENPI
from harness.evaluate.schedule import Dispatch, asked, check_workers, keys, remaining
from tests.support.evaluated import FOUR, episode, setting

MIXED_FIRST = [Key("libero_goal", 0, 0), Key("libero_goal", 7, 0), Key("libero_goal", 8, 0)]


def test_the_published_protocol_is_two_thousand_episodes() -> None:
    found = keys(asked(FOUR))
    assert len(found) == len(set(found)) == sum(each.episodes for each in CLAIMS[OPENPI].suites.values())
    assert found[0] == Key("libero_10", 0, 0)
    assert Counter(key.suite for key in found) == dict.fromkeys(FOUR, 500)


def test_the_claim_is_what_was_published() -> None:
    rates = [round(100 * each.successes / each.episodes, 1) for each in CLAIMS[OPENPI].suites.values()]
    assert rates == [98.8, 98.2, 98.0, 92.4]


def test_a_mixed_order_holds_the_same_episodes_and_mixes_the_tasks() -> None:
    mixed = keys(asked(FOUR, mixed=True))
    assert sorted(mixed) == sorted(keys(asked(FOUR)))
    first = Counter((key.suite, key.task) for key in mixed[:400])
    assert len(first) == 40
    assert max(first.values()) < 25
    assert keys(asked(FOUR, mixed=True)) == mixed
    assert keys(asked(FOUR, mixed=True, seed=1)) != mixed


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_larger_mixed_schedule_begins_with_the_first_tries_of_the_smaller(repeats: int) -> None:
    """So a paired test that has looked at the smaller one goes on, and is no second test."""
    large = keys(asked(FOUR, mixed=True, repeats=repeats))
    small = keys(asked(FOUR, mixed=True, episodes=7))
    assert large[: len(small)] == small


def test_a_mixed_order_is_the_same_on_every_machine() -> None:
    assert keys(asked(["libero_goal"], mixed=True, episodes=3))[:3] == MIXED_FIRST


def taken(left: list[Key], workers: int, *, mixed: bool = False) -> list[list[Key]]:
    """What each worker drove, if all are equally fast."""
    dispatch, found = Dispatch(left, mixed=mixed), [list[Key]() for _ in range(workers)]
    while True:
        before = sum(map(len, found))
        for worker in range(workers):
            key = dispatch.take(worker)
            found[worker] += [] if key is None else [key]
        if sum(map(len, found)) == before:
            return found


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
def test_workers_share_all_episodes_and_none_twice(workers: int, mixed: bool) -> None:
    left = keys(asked(["libero_10"], episodes=5, mixed=mixed))
    found = taken(left, workers, mixed=mixed)
    assert sorted(itertools.chain(*found)) == sorted(left)
    sizes = [len(each) for each in found if each]
    assert max(sizes) - min(sizes) <= 1


def test_a_worker_meets_few_tasks() -> None:
    found = taken(keys(asked(["libero_10"])), 4)
    assert max(len({key.task for key in share}) for share in found) <= 4


def test_a_mixed_order_is_driven_in_its_order() -> None:
    left = keys(asked(["libero_10"], episodes=5, mixed=True))
    assert taken(left, 1, mixed=True) == [left]


def test_the_task_of_a_worker_that_ended_is_driven_by_others() -> None:
    left = keys(asked(["libero_10"], tasks={"libero_10": [0, 1]}, episodes=3))
    dispatch = Dispatch(left)
    assert [dispatch.take(0), dispatch.take(1)] == [left[0], left[3]]
    dispatch.leave(0)
    assert [dispatch.take(2) for _ in range(5)] == [left[1], left[2], left[4], left[5], None]


def test_what_is_measured_is_not_asked_again() -> None:
    what = asked(["libero_10"], episodes=2)
    of = setting(what)
    done = [episode(key, of=of) for key in keys(what)[4:]] + [episode(keys(what)[0], "error", of=of)]
    assert remaining(what, done) == keys(what)[:4]
    assert remaining(what, [episode(key, of=of) for key in keys(what)]) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"suites": ["libero_goals"]}, "suite-unknown"),
        ({"suites": []}, "suite-unknown"),
        ({"suites": ["libero_10"], "tasks": {"libero_goal": [1]}}, "suite-unknown"),
        ({"suites": ["libero_10"], "tasks": {"libero_10": [10]}}, "task-unknown"),
        ({"suites": ["libero_10"], "tasks": {"libero_10": [-1]}}, "task-unknown"),
        ({"suites": ["libero_10"], "tasks": {"libero_10": []}}, "task-unknown"),
        ({"suites": ["libero_10"], "episodes": 51}, "episodes-impossible"),
        ({"suites": ["libero_10"], "episodes": 0}, "episodes-impossible"),
        ({"suites": ["libero_10"], "repeats": 0}, "schedule-invalid"),
        ({"suites": ["libero_10"], "seed": -1}, "schedule-invalid"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_by_name(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(HarnessError) as caught:
        asked(**arguments)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_the_nearest_suite_is_suggested() -> None:
    with pytest.raises(HarnessError) as caught:
        asked(["libero_spacial"])
    assert "libero_spatial" in caught.value.fix


@pytest.mark.parametrize("workers", [0, -1, 10_000])
def test_so_many_workers_cannot_be(workers: int) -> None:
    with pytest.raises(HarnessError, match="workers-impossible"):
        check_workers(workers)
