"""Compares two evaluations on the scenes that both have driven, found by the hash of the scene.

An episode's number is a name, not a scene: two evaluators may set its fixtures differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness.artifacts.episodes import Episode, Key
from harness.evaluate.intervals import LEVEL, Ends, independent, score
from harness.evaluate.paired import Cells, newcombe_paired, tango
from harness.evaluate.rates import Counted, Scene, TaskKey, counted, scenes_of


class Pair(NamedTuple):
    """One scene, with the share of successes of each side."""

    scene: Scene
    ours: float
    theirs: float


class Paired(NamedTuple):
    """The scenes of two evaluations.

    `moved` are episodes of one number and two scenes. `copies` counts the episodes on each side that are
    another episode's scene.
    """

    pairs: list[Pair]
    ours_alone: int
    theirs_alone: int
    moved: list[Key]
    copies: tuple[int, int]

    @property
    def enough(self) -> bool:
        """True if the pairs are at least half of the scenes of the smaller side."""
        count = len(self.pairs)
        return count > 0 and 2 * count >= count + min(self.ours_alone, self.theirs_alone)


class Gap(NamedTuple):
    """Our rate less theirs, with the interval that decides and the score interval."""

    ours: Counted
    theirs: Counted
    difference: float
    ends: Ends
    by_score: Ends
    method: str


def pair(ours: Iterable[Episode], theirs: Iterable[Episode]) -> Paired:
    """The scenes that both have, in the order of task and hash."""
    our_episodes, their_episodes = list(ours), list(theirs)
    one, two = scenes_of(our_episodes), scenes_of(their_episodes)
    shared = sorted(one.outcomes.keys() & two.outcomes.keys())
    scene_by_key = {each.key: each.scene_sha256 for each in their_episodes if each.measured}
    moved = [
        each.key
        for each in our_episodes
        if each.measured and scene_by_key.get(each.key, each.scene_sha256) != each.scene_sha256
    ]
    return Paired(
        [Pair(scene, _mean(one.outcomes[scene]), _mean(two.outcomes[scene])) for scene in shared],
        len(one.outcomes) - len(shared),
        len(two.outcomes) - len(shared),
        moved,
        (one.copies, two.copies),
    )


def cells(pairs: Iterable[Pair]) -> Cells:
    """The table of the pairs. A scene with repeats is shared among the cells."""
    a = b = c = d = 0.0
    for _, x, y in pairs:
        a, b, c, d = a + x * y, b + x * (1 - y), c + (1 - x) * y, d + (1 - x) * (1 - y)
    return Cells(a, b, c, d)


def discordant(pairs: Iterable[Pair]) -> tuple[int, int]:
    """In how many scenes only ours succeeds, and in how many only theirs.

    Scenes with repeats have shares of them, and the sums are rounded. The side whose mean is higher would not
    do: of two policies with one rate, a steady one is seldom between its best and its worst.
    """
    table = cells(pairs)
    return round(table.ours), round(table.theirs)


def paired_gap(pairs: list[Pair], level: float = LEVEL) -> Gap:
    """The difference on the same scenes."""
    table = cells(pairs)
    n = table.scenes
    return Gap(
        Counted(table.both + table.ours, n),
        Counted(table.both + table.theirs, n),
        table.difference,
        newcombe_paired(table, level),
        tango(table, level),
        "Newcombe's interval for pairs on the same scenes; score: Tango",
    )


def independent_gap(ours: Counted, theirs: Counted, level: float = LEVEL) -> Gap:
    """The difference of two rates on scenes that are not the same, or not known."""
    return Gap(
        ours,
        theirs,
        (ours.rate or 0.0) - (theirs.rate or 0.0),
        independent(*ours, *theirs, level),
        score(*ours, *theirs, level),
        "the hull of Newcombe's interval for independent episodes and of the score interval corrected for"
        " skewness; score: Miettinen and Nurminen",
    )


def count(episodes: Iterable[Episode], impute: Mapping[Key, bool] | None = None) -> Counted:
    """The rate of the measured episodes. `impute` gives outcomes to episodes that were not measured."""
    found = {task_key: list(rates.values()) for task_key, rates in scenes_of(episodes).rates().items()}
    for key, outcome in (impute or {}).items():
        found.setdefault(TaskKey(key.suite, key.task), []).append(float(outcome))
    return counted(found.values())


def _mean(outcomes: list[bool]) -> float:
    return sum(outcomes) / len(outcomes)
