"""Tests that verdicts on made evaluations of known truth are right, and say what they rest on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.artifacts.episodes import Key
from harness.artifacts.evaluation import ALL, Evaluation
from harness.evaluate.claims import CLAIMS, OPENPI
from harness.evaluate.intervals import Ends
from harness.evaluate.judge import judge
from harness.evaluate.schedule import asked, keys
from harness.evaluate.verdict import Bounds, decide, with_unmeasured
from harness.run.directory import RunDir
from tests.support.evaluated import (
    ALIKE,
    CLAIMED,
    FOUR,
    claimed,
    digest,
    directory,
    driven,
    episode,
    lower,
    outcomes,
    scene_of,
    setting,
    two,
)


class Case(NamedTuple):
    """`make` gives our directory and what it is compared with; the truth is in `word`."""

    name: str
    make: Callable[[Path], tuple[RunDir, RunDir | str]]
    word: str
    field: str | None = None
    says: str = ""


def with_errors(rates: Any, errors: int) -> Any:
    def make(path: Path) -> tuple[RunDir, str]:
        of = setting()
        found = outcomes(of.asked, rates, seed=1)
        lines = [
            episode(key, "error" if i % (2000 // errors) == 0 else "success" if good else "failure", of=of)
            for i, (key, good) in enumerate(found.items())
        ]
        return directory(path, of, lines), OPENPI

    return make


def one_scene_a_task(path: Path) -> tuple[RunDir, str]:
    """As LeRobot did before #2899: one initial state, fifty times."""
    of = setting()
    lines = [
        episode(key, "success" if good else "failure", of=of, scene=digest(key.suite, key.task))
        for key, good in outcomes(of.asked, CLAIMED, seed=3).items()
    ]
    return directory(path, of, lines), OPENPI


def noise_thrice(path: Path) -> tuple[RunDir, RunDir]:
    """Five scenes apart, each with three noises: 15 to 0 of 150 episodes, and 5 to 0 of 50 scenes."""
    what = asked(["libero_goal"], tasks={"libero_goal": [3]}, repeats=3)
    found = []
    for name, failures in (("ours", range(5)), ("theirs", ())):
        of = setting(what, evaluated={"name": name})
        good = {Key("libero_goal", 3, k, repeat): k not in failures for k in range(50) for repeat in range(3)}
        found.append(driven(path / name, of, good))
    return found[0], found[1]


def killed(path: Path) -> tuple[RunDir, str]:
    of = setting()
    return driven(path, of, dict(list(outcomes(of.asked, CLAIMED, seed=1).items())[:1900])), OPENPI


def twice_otherwise(path: Path) -> tuple[RunDir, str]:
    """An episode that failed, driven again until it succeeded."""
    of = setting()
    found = outcomes(of.asked, CLAIMED, seed=1)
    lines = [episode(key, "success" if good else "failure", of=of) for key, good in found.items()]
    again = [episode(each.key, "success", of=of) for each in lines if each.outcome == "failure"]
    return directory(path, of, [*lines, *again]), OPENPI


def some_tasks(path: Path) -> tuple[RunDir, str]:
    what = asked(["libero_10"], tasks={"libero_10": [0, 1, 4]})
    return driven(path, setting(what), outcomes(what, CLAIMED, seed=1)), OPENPI


def another_suite(path: Path) -> tuple[RunDir, str]:
    what = asked(["libero_90"], episodes=2)
    return driven(path, setting(what), outcomes(what, 0.2, seed=1)), OPENPI


def lerobot() -> dict[str, Any]:
    return {"protocol": {"name": "lerobot", "version": 1}}


CASES = [
    Case("the claimed rates", claimed(), "reproduces"),
    Case("six points lower", claimed(lower(6)), "below"),
    Case("one suite 15 points lower", claimed(lower(15, "libero_goal")), "below"),
    Case("one suite 7 points lower, the others as claimed", claimed(lower(7, "libero_object")), "below"),
    Case("the claimed rates, few episodes", claimed(episodes=2), "inconclusive", None, "would decide"),
    Case("three points above", claimed(0.999), "above"),
    Case("another MuJoCo", claimed(versions={"mujoco": "3.3.7"}), "not comparable", "mujoco version"),
    Case("another protocol", claimed(**lerobot()), "not comparable", "protocol"),
    Case(
        "ten actions executed",
        claimed(protocol={"values": {**CLAIMS[OPENPI].protocol.values, "replan_steps": 10}}),
        "not comparable",
        "protocol.replan_steps",
    ),
    Case("a named deviation", claimed(deviations=["gripper binarized"]), "not comparable", "deviations"),
    Case("chunks of 50", claimed(evaluated={"action_horizon": 50}), "not comparable", "action horizon"),
    Case("as claimed, ten errors", with_errors(CLAIMED, 10), "inconclusive", None, "not measured"),
    Case("six points lower, ten errors", with_errors(lower(6), 10), "below"),
    Case("a hundred episodes missing", killed, "inconclusive", None, "not measured"),
    Case("failures repeated until they succeed", twice_otherwise, "inconclusive", None, "recorded twice"),
    Case("one scene a task, fifty times", one_scene_a_task, "inconclusive"),
    Case("some tasks of a suite", some_tasks, "not comparable", "tasks"),
    Case("a suite without a claim", another_suite, "not comparable", "suites"),
    Case("pairs, the same rates", two(CLAIMED, CLAIMED), "reproduces"),
    Case("pairs, four points lower", two(lower(4), CLAIMED), "below"),
    Case("pairs, six points above", two(CLAIMED, lower(6)), "above"),
    Case("pairs, one point lower, few", two(lower(1), CLAIMED, 5), "inconclusive", None, "pairs of episodes"),
    Case(
        "pairs of other scenes",
        two(CLAIMED, CLAIMED, scenes=lambda key: digest("moved", key)),
        "not comparable",
        "scenes",
    ),
    Case(
        "pairs, one task's fixtures moved",
        two(
            CLAIMED,
            CLAIMED,
            scenes=lambda key: digest("moved", key) if key.task == 4 and key.episode else scene_of(key),
        ),
        "not comparable",
        "scenes",
    ),
    Case(
        "pairs, other statistics",
        two(CLAIMED, CLAIMED, changes={"evaluated": {"statistics_sha256": "6" * 64}}),
        "not comparable",
        "dataset statistics",
    ),
    Case(
        "pairs, another renderer",
        two(CLAIMED, CLAIMED, changes={"renderer": "egl nvidia 570.1"}),
        "not comparable",
        "renderer",
    ),
    Case(
        "pairs, another table of scenes",
        two(CLAIMED, CLAIMED, changes={"scenes_sha256": "b" * 64}),
        "not comparable",
        "scenes",
    ),
    Case("three noises of a scene are no three scenes", noise_thrice, "inconclusive"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_the_verdict_is_the_truth(case: Case, tmp_path: Path) -> None:
    ours, against = case.make(tmp_path / "made")
    found = judge(ours, against)
    assert (found.verdict, found.field) == (case.word, case.field), found.reason
    assert case.says in found.reason
    assert found.reason
    assert ours.read(Evaluation) == found


def test_what_is_no_longer_asked_counts_in_no_figure(tmp_path: Path) -> None:
    """A resume asked for less: the errors and copies among the others are of no episode that was asked."""
    of = setting(asked(["libero_goal"], tasks={"libero_goal": [1]}, episodes=2))
    lines = [episode(Key("libero_goal", 1, k), of=of) for k in range(2)]
    lines += [
        episode(Key("libero_goal", 2, k), "error" if k else "success", of=of, scene="ab" * 16)
        for k in range(2)
    ]
    lines.append(episode(Key("libero_goal", 2, 2), of=of, scene="ab" * 16))
    found = judge(directory(tmp_path / "a", of, lines))
    assert (found.errors, found.all.errors, found.all.measured) == ({}, 0, 2)
    assert found.notes == ["3 recorded episodes are not asked and count nowhere"]


def test_a_suite_that_alone_is_below_is_named(tmp_path: Path) -> None:
    found = judge(*claimed(lower(6, "libero_object"))(tmp_path / "made"))
    assert found.verdict == "below"
    assert found.differences[-1].verdict != "below"
    assert found.reason.startswith("libero_object alone")


def test_scenes_count_and_not_lines(tmp_path: Path) -> None:
    found = judge(one_scene_a_task(tmp_path / "made")[0])
    assert (found.all.measured, found.all.scenes) == (2000, 40)
    assert found.all.interval.high - found.all.interval.low > 0.05
    assert any("pseudo-replication: 1960 episodes" in note for note in found.notes)


def test_three_noises_would_be_told_apart_if_they_were_scenes(tmp_path: Path) -> None:
    found = judge(*noise_thrice(tmp_path / "made"))
    (only,) = found.differences
    assert only.scope == ALL
    assert only.pairs is not None
    assert (only.pairs.scenes, only.pairs.only_ours, only.pairs.only_theirs) == (50, 0, 5)
    assert only.pairs.p == pytest.approx(0.0625)


def test_repeats_do_not_tell_a_steady_policy_from_an_unsteady_one_of_the_same_rate(tmp_path: Path) -> None:
    """Ours succeeds in two of three tries of each scene, theirs always in two of three scenes."""
    what = asked(["libero_goal", "libero_10"], episodes=48, repeats=3)
    ours = {key: key.repeat > 0 for key in keys(what)}
    theirs = {key: key.episode % 3 > 0 for key in keys(what)}
    one = driven(tmp_path / "ours", setting(what), ours)
    two = driven(tmp_path / "theirs", setting(what, evaluated={"name": "steady"}), theirs)
    only = judge(one, two).differences[-1]
    assert only.difference == pytest.approx(0.0)
    assert only.pairs is not None
    assert only.pairs.p == pytest.approx(1.0)
    assert only.pairs.only_ours == only.pairs.only_theirs == 960 * 2 // 9


def test_the_number_that_would_decide_decides(tmp_path: Path) -> None:
    """With so many pairs of the same rates the verdict is no longer inconclusive, in most draws."""
    few = judge(*two(lower(5), CLAIMED, 5)(tmp_path / "few"))
    overall = few.differences[-1]
    assert few.verdict == "inconclusive"
    assert overall.needed is not None
    assert overall.needed > 200
    assert judge(*two(lower(5), CLAIMED)(tmp_path / "many")).verdict == "below"


def test_a_suite_alone_against_its_own_noise_needs_more_than_there_is(tmp_path: Path) -> None:
    what = asked(["libero_10"])
    found = judge(driven(tmp_path / "one", setting(what), outcomes(what, 0.92, seed=1)), OPENPI)
    assert found.verdict == "inconclusive"
    assert "more than the 500 scenes" in found.reason or "no number of episodes would decide" in found.reason


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.01, 0.01, "reproduces"),
        (-0.01, 0.05, "reproduces"),
        (-0.015, -0.001, "reproduces"),
        (0.001, 0.015, "reproduces"),
        (0.001, 0.03, "above"),
        (-0.05, -0.001, "below"),
        (-0.02, 0.01, "inconclusive"),
        (-0.05, 0.0, "inconclusive"),
    ],
)
def test_a_word_is_what_its_interval_says(low: float, high: float, word: str) -> None:
    assert decide(Ends(low, high), 0.02) == word


def test_what_was_not_measured_may_be_anything() -> None:
    low, middle = Ends(-0.06, -0.03), Ends(-0.03, 0.03)
    assert with_unmeasured(Bounds(low, low, low), 0.02, 3) == "below"
    assert with_unmeasured(Bounds(low, low, middle), 0.02, 3) == "inconclusive"
    assert with_unmeasured(Bounds(Ends(-0.01, 0.01), low, low), 0.02, 1) == "inconclusive"


def test_a_suite_without_a_claim_is_left_out_of_the_comparison_and_named(tmp_path: Path) -> None:
    what = asked([*FOUR, "libero_90"], episodes=3)
    rates = {**CLAIMED, "libero_90": 0.1}
    found = judge(driven(tmp_path / "a", setting(what), outcomes(what, rates, seed=1)), OPENPI)
    assert {each.scope for each in found.differences} == {*FOUR, ALL}
    assert found.differences[-1].ours > 0.9
    assert any("libero_90" in note for note in found.notes)


def test_a_whole_number_equals_its_float_and_not_a_truth_value(tmp_path: Path) -> None:
    values = CLAIMS[OPENPI].protocol.values
    for seed, field in ((7.0, None), (True, "protocol.seed")):
        made = claimed(protocol={"values": {**values, "seed": seed}})(tmp_path / str(seed))
        assert judge(*made).field == field


def test_two_halves_that_share_few_scenes_are_compared_as_independent(tmp_path: Path) -> None:
    of = setting()
    ours = {key: good for key, good in outcomes(of.asked, 0.5, seed=1).items() if key.episode < 26}
    theirs = {key: good for key, good in outcomes(of.asked, 0.95, seed=2).items() if key.episode > 24}
    found = judge(driven(tmp_path / "a", of, ours), driven(tmp_path / "b", of, theirs))
    overall = found.differences[-1]
    assert overall.pairs is None
    assert "independent" in overall.method
    assert any("so few are shared" in note for note in found.notes)
    # Nearly half was asked and not measured, and could have been otherwise.
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(("points", "word"), [(8, "below"), (0, "inconclusive")])
def test_errors_on_both_sides_of_pairs_count_against_the_conclusion(
    tmp_path: Path, points: float, word: str
) -> None:
    of, sides = setting(), []
    for seed, rates in ((1, lower(points)), (2, CLAIMED)):
        found = outcomes(of.asked, rates, seed=seed, likeness=ALIKE)
        kinds = [
            "error" if i % 200 == seed else "success" if good else "failure"
            for i, good in enumerate(found.values())
        ]
        lines = [episode(key, kind, of=of) for key, kind in zip(found, kinds, strict=True)]
        sides.append(directory(tmp_path / str(seed), of, lines))
    made = judge(*sides)
    assert made.verdict == word
    assert made.all.errors == 10
    assert made.differences[-1].pairs is not None
    assert made.differences[-1].pairs.scenes == 1980
