"""Weighs an evaluation against another or a claim: each suite, all of them, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

from harness.artifacts.episodes import Episode, Key
from harness.artifacts.evaluation import ALL, Apart, Difference, Pairs, Sequential, Word
from harness.evaluate.claims import STATES, Claim
from harness.evaluate.compare import Gap, Pair, Paired, count, discordant, independent_gap, pair, paired_gap
from harness.evaluate.intervals import LEVEL
from harness.evaluate.paired import mcnemar
from harness.evaluate.rates import Counted, Scene, TaskKey, as_range, scene_of
from harness.evaluate.sequential import follow
from harness.evaluate.verdict import Bounds, decide, needed, with_unmeasured
from harness.simulate.protocol import SUITES


class Side(NamedTuple):
    """The episodes of one evaluation, and those that were asked."""

    episodes: list[Episode]
    asked: list[Key]

    @property
    def task_keys(self) -> set[TaskKey]:
        return {TaskKey(key.suite, key.task) for key in self.asked}

    @property
    def suites(self) -> set[str]:
        return {key.suite for key in self.asked}

    @property
    def unmeasured(self) -> list[Key]:
        done = {episode.key for episode in self.episodes if episode.measured}
        return [key for key in self.asked if key not in done]

    def within(self, task_keys: set[TaskKey]) -> Side:
        return Side(
            [each for each in self.episodes if TaskKey(each.suite, each.task) in task_keys],
            [key for key in self.asked if TaskKey(key.suite, key.task) in task_keys],
        )


class Weighed(NamedTuple):
    """The verdict with what it rests on. `field` names what makes it not comparable."""

    verdict: Word
    field: str | None
    reason: str
    differences: list[Difference]
    notes: list[str]


def weigh(ours: Side, theirs: Side | Claim, apart: list[Apart], margin: float, doubts: list[str]) -> Weighed:
    """The verdict by the interval of the difference.

    `doubts` are reasons for which nothing is said to reproduce.
    """
    suites = sorted(ours.suites & (set(theirs.suites) if isinstance(theirs, Claim) else theirs.suites))
    barred, notes = _not_comparable(ours, theirs, apart, suites)
    found: list[Difference] = []
    if suites and not (barred and barred.field == "tasks"):
        scopes = [(suite, [suite]) for suite in suites] if len(suites) > 1 else []
        # All suites together are wrong in at most 5 % of the cases (Bonferroni).
        found = [
            _difference(scope, part, ours, theirs, margin, LEVEL if scope == ALL else _level(len(suites)))
            for scope, part in [*scopes, (ALL, suites)]
        ]
    if barred:
        found = [each.model_copy(update={"verdict": "not comparable", "needed": None}) for each in found]
        return Weighed("not comparable", barred.field, barred.reason, found, notes)
    word, reason = _headline(found, doubts)
    return Weighed(word, None, reason, found, notes)


def in_order(ours: Side, theirs: Side, order: Iterable[Key], margin: float) -> Sequential:
    """The sequential test over the pairs in the asked order, up to the first episode without an outcome.

    A scene counts once, by the outcome of its first episode on each side. Further repeats would change pairs
    that were looked at, and a mean of theirs is no single outcome, whose sign the test counts.
    """
    mine = {each.key: each for each in ours.episodes}
    latest_first = sorted(theirs.episodes, key=attrgetter("key"), reverse=True)
    first = {scene: each for each in latest_first if (scene := scene_of(each)) is not None}
    differences: list[int] = []
    for key in order:
        scene = scene_of(mine[key]) if key in mine else None
        if scene is None:
            break
        other = first.pop(scene, None)
        if other is not None:
            differences.append((mine[key].outcome == "success") - (other.outcome == "success"))
    return follow(differences, margin)


def _level(suites: int) -> float:
    return 1 - (1 - LEVEL) / suites


class _Barred(NamedTuple):
    """Why two sides cannot be compared."""

    field: str
    reason: str


def _not_comparable(
    ours: Side, theirs: Side | Claim, apart: list[Apart], suites: list[str]
) -> tuple[_Barred | None, list[str]]:
    """(what bars the comparison, if anything, notes)."""
    decisive = next((each for each in apart if each.decides), None)
    if decisive:
        says = f"{decisive.field} is {decisive.ours} here and {decisive.theirs} there: {decisive.why}"
        return _Barred(decisive.field, says), []
    if not suites:
        return _Barred("suites", "no suite was evaluated on both sides"), []
    if isinstance(theirs, Claim):
        notes = [theirs.caveat]
        if alone := sorted(ours.suites - set(suites)):
            notes.append(f"no rate of {', '.join(alone)} was published, so nothing is compared there")
        return _other_tasks(ours, theirs, suites), notes
    if not ours.task_keys & theirs.task_keys:
        return _Barred("tasks", "no task was evaluated on both sides"), []
    paired = pair(ours.episodes, theirs.episodes)
    if paired.moved:
        says = (
            f"{len(paired.moved)} episodes of one number are another scene on the other side, the first"
            f" {paired.moved[0]}: fixtures were placed otherwise"
        )
        return _Barred("scenes", says), []
    return None, _pair_notes(paired)


def _other_tasks(ours: Side, claim: Claim, suites: list[str]) -> _Barred | None:
    """A claim is of all tasks of a suite: some of them have another rate."""
    for suite in suites:
        tasks = sum(task_key.suite == suite for task_key in ours.task_keys)
        if tasks != claim.suites[suite].tasks:
            says = f"{tasks} of the {claim.suites[suite].tasks} tasks of {suite} were asked"
            return _Barred("tasks", says)
    return None


def _pair_notes(paired: Paired) -> list[str]:
    notes = []
    if any(paired.copies):
        notes.append(
            f"pseudo-replication: {paired.copies[0]} of our episodes and {paired.copies[1]} of theirs are the"
            " scene of another episode; each scene counts once"
        )
    if paired.ours_alone or paired.theirs_alone:
        notes.append(
            f"{len(paired.pairs)} scenes are on both sides, {paired.ours_alone} on ours alone,"
            f" {paired.theirs_alone} on theirs alone"
            + ("" if paired.enough else "; so few are shared that the two are compared as independent")
        )
    return notes


def _difference(
    scope: str, suites: list[str], ours: Side, theirs: Side | Claim, margin: float, level: float
) -> Difference:
    task_keys = {task_key for task_key in ours.task_keys if task_key.suite in suites}
    if isinstance(theirs, Claim):
        one = ours.within(task_keys)
        claimed = [theirs.suites[suite] for suite in suites]
        other = Counted(
            float(sum(each.successes for each in claimed)), float(sum(each.episodes for each in claimed))
        )
        bounds, gap = _independent(one, other, level)
        return _made(scope, suites, gap, bounds, margin, level, len(one.unmeasured), None, fixed=True)
    task_keys &= theirs.task_keys
    one, two = ours.within(task_keys), theirs.within(task_keys)
    paired = pair(one.episodes, two.episodes)
    unmeasured = len(one.unmeasured) + len(two.unmeasured)
    if paired.enough:
        gap = paired_gap(paired.pairs, level)
        bounds = Bounds(
            gap.ends,
            paired_gap(_imputed(paired.pairs, one, two, 0.0), level).ends,
            paired_gap(_imputed(paired.pairs, one, two, 1.0), level).ends,
        )
        return _made(scope, suites, gap, bounds, margin, level, unmeasured, paired, fixed=False)
    bounds, gap = _independent(one, two, level)
    return _made(scope, suites, gap, bounds, margin, level, unmeasured, None, fixed=False)


def _independent(one: Side, other: Side | Counted, level: float) -> tuple[Bounds, Gap]:
    """The difference and its bounds: what ours lacks goes one way, what theirs lacks the other."""

    def gap(outcome: bool | None) -> Gap:
        ours = {} if outcome is None else dict.fromkeys(one.unmeasured, outcome)
        if isinstance(other, Counted):
            return independent_gap(count(one.episodes, ours), other, level)
        theirs = {} if outcome is None else dict.fromkeys(other.unmeasured, not outcome)
        return independent_gap(count(one.episodes, ours), count(other.episodes, theirs), level)

    return Bounds(*(gap(outcome).ends for outcome in (None, False, True))), gap(None)


def _imputed(pairs: list[Pair], one: Side, two: Side, outcome: float) -> list[Pair]:
    """The pairs, and one for each of our unmeasured episodes that the other side has measured.

    An episode that only the other side lacks is taken to be against the same conclusion.
    """
    measured = {each.key: each for each in two.episodes if each.measured}
    ours = {each.key: each for each in one.episodes if each.measured}
    more = [
        (key, outcome, float(measured[key].outcome == "success")) for key in one.unmeasured if key in measured
    ]
    more += [
        (key, float(ours[key].outcome == "success"), 1 - outcome) for key in two.unmeasured if key in ours
    ]
    # The scene of an unmeasured episode is not known; its key stands for it.
    return [*pairs, *(Pair(Scene(TaskKey(key.suite, key.task), str(key)), x, y) for key, x, y in more)]


def _made(
    scope: str,
    suites: list[str],
    gap: Gap,
    bounds: Bounds,
    margin: float,
    level: float,
    unmeasured: int,
    paired: Paired | None,
    *,
    fixed: bool,
) -> Difference:
    nothing = not gap.ours.episodes or not gap.theirs.episodes
    word: Word = "inconclusive" if nothing else with_unmeasured(bounds, margin, unmeasured)
    reason, episodes = _range_words(gap, margin), None
    b, c = discordant(paired.pairs) if paired else (0, 0)
    if paired and word in ("below", "above") and mcnemar(b, c) > 1 - level:
        # Newcombe's interval is a little short for a few scenes that all go one way.
        word, reason = (
            "inconclusive",
            f"{reason}; the exact test does not tell {b} from {c} of {b + c} scenes",
        )
    if nothing:
        reason = "no episode was measured on one side"
    elif word == "inconclusive" and unmeasured and decide(gap.ends, margin) != "inconclusive":
        reason = f"{unmeasured} episodes were asked and not measured, which could change it; {reason}"
    elif word == "inconclusive":
        share = (b + c) / len(paired.pairs) if paired else None
        needs = needed(gap, margin, level, paired_share=share, fixed=fixed)
        episodes, reason = needs.episodes, f"{reason}; {needs.words}{_too_many(needs.episodes, suites)}"
    if not nothing and decide(gap.by_score, margin) != decide(gap.ends, margin):
        reason += f"; the score interval alone would say {decide(gap.by_score, margin)}"
    return Difference(
        scope=scope,
        ours=gap.ours.rate or 0.0,
        theirs=gap.theirs.rate or 0.0,
        difference=gap.difference,
        level=level,
        interval=as_range(gap.ends),
        by_score=as_range(gap.by_score),
        method=gap.method,
        pairs=None
        if paired is None
        else Pairs(
            scenes=len(paired.pairs),
            only_ours=b,
            only_theirs=c,
            p=mcnemar(b, c),
            ours_alone=paired.ours_alone,
            theirs_alone=paired.theirs_alone,
        ),
        verdict=word,
        reason=reason,
        needed=episodes,
    )


def _range_words(gap: Gap, margin: float) -> str:
    low, high = 100 * gap.ends.low, 100 * gap.ends.high
    return f"{100 * gap.difference:+.2f} points ({low:+.2f} to {high:+.2f}), margin {100 * margin:g}"


def _too_many(episodes: int | None, suites: list[str]) -> str:
    there = sum(SUITES.get(suite, 0) for suite in suites) * STATES
    if episodes is None or not there or episodes <= there:
        return ""
    return (
        f", more than the {there:,} scenes of the fixed initial states: a larger margin or more suites would"
    )


def _headline(found: list[Difference], doubts: list[str]) -> tuple[Word, str]:
    """The verdict of all, unless one suite alone is below."""
    overall = found[-1]
    below = [each for each in found[:-1] if each.verdict == "below"]
    if overall.verdict != "below" and below:
        return "below", f"{below[0].scope} alone: {below[0].reason} (all: {overall.reason})"
    return doubted(overall.verdict, overall.reason, doubts)


def doubted(word: Word, reason: str, doubts: list[str]) -> tuple[Word, str]:
    """The verdict, or "inconclusive" where doubts forbid that it reproduces."""
    if word == "reproduces" and doubts:
        return "inconclusive", f"{'; '.join(doubts)}; else it would reproduce: {reason}"
    return word, reason
