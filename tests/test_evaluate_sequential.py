"""Tests that the paired test stops early, in the asked order only, and errs no more often than it says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.coverage import errs
from harness.artifacts.episodes import Key
from harness.artifacts.evaluation import Evaluation
from harness.errors import HarnessError
from harness.evaluate.judge import judge
from harness.evaluate.schedule import asked, keys
from harness.evaluate.sequential import ALPHA, follow, log_e_differs
from harness.evaluate.weigh import Side, in_order
from tests.support.evaluated import FOUR, directory, driven, episode, outcomes, setting

MIXED = asked(FOUR, mixed=True, seed=3)


def test_the_evidence_is_a_fair_bet() -> None:
    """Its mean over all series of ten fair coins is 1."""
    mean = sum(math.comb(10, k) * math.exp(log_e_differs(k, 10 - k)) for k in range(11)) / 2**10
    assert mean == pytest.approx(1.0)
    assert log_e_differs(0, 0) == pytest.approx(0.0)


def test_one_sided_pairs_stop_it_early() -> None:
    found = follow([0.0] * 50 + [-1.0] * 50, margin=0.02)
    assert found.verdict == "below"
    assert found.stopped_at is not None
    assert 55 < found.stopped_at < 65
    assert follow([1.0] * 50, margin=0.02).verdict == "above"


def test_pairs_that_are_equal_reproduce_before_the_end() -> None:
    found = follow([0.0] * 2000, margin=0.02)
    assert found.verdict == "reproduces"
    assert found.stopped_at is not None
    assert found.stopped_at < 500


def test_few_pairs_say_nothing() -> None:
    assert follow([], margin=0.02).verdict is None
    assert follow([-1.0] * 5, margin=0.02).verdict is None


@pytest.mark.parametrize(
    ("difference", "wrong", "limit"),
    [
        (0.0, {"below", "above"}, ALPHA),
        (-0.02, {"reproduces"}, ALPHA / 2),
        (-0.03, {"reproduces"}, ALPHA / 2),
    ],
)
def test_looking_after_every_pair_errs_no_more_often_than_it_says(
    difference: float, wrong: set[str], limit: float
) -> None:
    runs = 100
    count = errs(difference, 0.02, wrong, runs, seed=5, pairs=800)
    assert count <= runs * limit + 3 * math.sqrt(runs * limit)


def test_an_episode_that_ended_early_does_not_jump_the_queue() -> None:
    """Successes end sooner than failures, so the test goes up to the first episode without an outcome."""
    of = setting(MIXED)
    order = keys(MIXED)
    theirs = Side([episode(key, of=of) for key in order], order)
    ours = Side([episode(key, of=of) for key in order[:10] + order[11:]], order)
    assert in_order(ours, theirs, order, 0.02).pairs == 10


@pytest.mark.parametrize("theirs", [1, 3])
def test_repeats_of_one_scene_are_one_pair_of_single_outcomes(theirs: int) -> None:
    """A mean of three is seldom equal to one outcome: its sign would tell apart two policies of one rate."""
    what = asked(["libero_goal"], repeats=3, mixed=True, seed=3)
    order, of = keys(what), setting(what)

    def side(seed: int, repeats: int) -> Side:
        found = outcomes(what, 0.9, seed=seed)
        made = [episode(key, "success" if good else "failure", of=of) for key, good in found.items()]
        return Side([each for each in made if each.repeat < repeats], order)

    ours, other = side(1, 3), side(2, theirs)
    found = in_order(ours, other, order, 0.02)
    assert (found.pairs, found.verdict) == (500, None)
    # What was looked at stays as it was, whatever is driven later.
    begun = {each.key: each for each in ours.episodes if each.key in order[:900]}
    assert in_order(Side(list(begun.values()), order), other, order, 0.02).e_differs == pytest.approx(
        in_order(ours, other, order[:900], 0.02).e_differs
    )


def test_episodes_without_a_scene_are_no_pair() -> None:
    order, of = keys(MIXED), setting(MIXED)
    made = [episode(key, of=of) for key in order]
    bare = [each.model_copy(update={"scene_sha256": None}) for each in made]
    assert in_order(Side(made, order), Side(made, order), order, 0.02).pairs > 0
    for ours, theirs in ((bare, bare), (bare, made), (made, bare)):
        assert in_order(Side(ours, order), Side(theirs, order), order, 0.02).pairs == 0


def test_episodes_that_contradict_each_other_forbid_that_it_reproduces(tmp_path: Path) -> None:
    theirs = driven(tmp_path / "theirs", setting(MIXED), dict.fromkeys(keys(MIXED), True))
    of = setting(MIXED, evaluated={"name": "twice"})
    lines = [episode(key, of=of) for key in keys(MIXED)]
    ours = directory(tmp_path / "ours", of, [*lines, episode(lines[0].key, "failure", of=of)])
    found = judge(ours, theirs, sequential=True)
    assert found.verdict == "inconclusive"
    assert "recorded twice with different contents" in found.reason
    assert found.sequential is not None
    assert found.sequential.verdict == "reproduces"


def test_it_stops_an_evaluation_that_is_lower_long_before_its_end(tmp_path: Path) -> None:
    theirs = driven(tmp_path / "theirs", setting(MIXED), outcomes(MIXED, 0.97, seed=2, likeness=0.5))
    of = setting(MIXED, evaluated={"name": "worse"})
    all_of_it = outcomes(MIXED, 0.85, seed=1, likeness=0.5)
    begun = {key: all_of_it[key] for key in keys(MIXED)[:400]}
    ours = driven(tmp_path / "ours", of, begun)
    found = judge(ours, theirs, sequential=True)
    assert found.verdict == "below"
    assert found.sequential is not None
    assert found.sequential.stopped_at is not None
    assert found.sequential.stopped_at < 400
    assert "wrong with probability 0.05 at most" in found.reason
    assert ours.read(Evaluation) == found == judge(ours, theirs, sequential=True)
    for sequential, says in ((False, "with --sequential"), (False, "with --sequential"), (True, "without")):
        assert f"given here before, {says}" in judge(ours, theirs, sequential=sequential).notes[-1]
    more = driven(tmp_path / "more", of, all_of_it)
    more.write(judge(driven(tmp_path / "few", of, begun), theirs))
    assert "given here before, of other episodes" in judge(more, theirs).notes[-1]


def test_more_episodes_go_on_with_the_test_that_has_stopped(tmp_path: Path) -> None:
    """A second order of what was looked at would be a second chance to err."""
    theirs = driven(tmp_path / "theirs", setting(MIXED), outcomes(MIXED, 0.97, seed=2, likeness=0.5))
    few = asked(FOUR, mixed=True, seed=3, episodes=10)
    all_of_it = outcomes(MIXED, 0.85, seed=1, likeness=0.5)
    found = []
    for what in (few, MIXED):
        of = setting(what, evaluated={"name": "worse"})
        begun = {key: all_of_it[key] for key in keys(what)}
        ours = driven(tmp_path / str(what.episodes), of, begun)
        found.append(judge(ours, theirs, sequential=True).sequential)
    assert found[0] == found[1]
    assert found[0] is not None
    assert found[0].stopped_at is not None


def test_what_it_did_not_decide_is_inconclusive_whatever_the_interval_says(tmp_path: Path) -> None:
    theirs = driven(tmp_path / "theirs", setting(MIXED), outcomes(MIXED, 0.97, seed=2))
    of = setting(MIXED, evaluated={"name": "other"})
    begun = dict.fromkeys(keys(MIXED)[:30], True)
    found = judge(driven(tmp_path / "ours", of, begun), theirs, sequential=True)
    assert found.verdict == "inconclusive"
    assert "has not stopped after 30 pairs" in found.reason


@pytest.mark.parametrize("against", ["openpi:pi05_libero", None])
def test_there_must_be_pairs_to_stop_early(tmp_path: Path, against: str | None) -> None:
    of = setting(MIXED)
    ours = driven(tmp_path / "ours", of, {Key("libero_10", 0, 0): True})
    with pytest.raises(HarnessError, match="sequential-impossible"):
        judge(ours, against, sequential=True)
