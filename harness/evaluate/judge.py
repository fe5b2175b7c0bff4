"""Turns the episodes of a directory, beside another evaluation or a claim, into evaluation.json."""

from __future__ import annotations

import math
from collections import Counter

from harness.artifacts.episodes import Episode
from harness.artifacts.evaluation import ALL, Against, Apart, Difference, Evaluation, Sequential, Word
from harness.errors import HarnessError
from harness.evaluate import comparable
from harness.evaluate.claims import CLAIMS, Claim, claim_of
from harness.evaluate.intervals import RESAMPLES, SEED
from harness.evaluate.rates import rates_of, scenes_of
from harness.evaluate.record import Recorded, read_recorded
from harness.evaluate.verdict import MARGIN
from harness.evaluate.weigh import Side, doubted, in_order, weigh
from harness.evaluate.why import of_claimed, of_policy, why
from harness.received.files import UnsafeFile
from harness.run.directory import RunDir, sha256_json

INTERVAL = (
    "95 %, Wilson over different scenes for these tasks; for tasks like these, the hull of a bootstrap over"
    f" tasks ({RESAMPLES:,} resamples of seed {SEED}) and of a score interval at the effective number of"
    " episodes"
)
_MOST_NAMED = 5


def judge(
    directory: RunDir,
    against: RunDir | str | None = None,
    *,
    margin: float = MARGIN,
    sequential: bool = False,
) -> Evaluation:
    """Writes evaluation.json of the directory, and returns it.

    `against` is the directory of another evaluation, or the name of a published claim. `margin` is a share
    (0.02: two points). With `sequential` the verdict is that of the paired test that may be looked at after
    every pair, and of nothing else.

    Raises: HarnessError "evaluation-missing", "evaluation-mixed", "evaluation-itself", "claim-unknown",
    "margin-impossible", "sequential-impossible"; as `RunDir.read` and `RunDir.write`; UnsafeFile.
    """
    check_margin(margin)
    ours = read_recorded(directory)
    theirs = _other(ours, against)
    if sequential:
        _check_sequential(ours, theirs)
    evaluation = evaluation_of(ours, theirs, margin=margin, sequential=sequential)
    if said := _looked_before(directory, evaluation):
        evaluation = evaluation.model_copy(update={"notes": [*evaluation.notes, said]})
    directory.write(evaluation)
    return evaluation


_AGAIN = "a verdict against the same was given here before, "


def _looked_before(directory: RunDir, now: Evaluation) -> str | None:
    """What a verdict that is not the first must say: only one test may be looked at again and again."""
    try:
        before = directory.read(Evaluation)
    except (HarnessError, UnsafeFile):
        return None
    if before is None or now.against is None or before.against is None or not before.verdict:
        return None
    if (before.against.kind, before.against.name) != (now.against.kind, now.against.name):
        return None
    tests = sum(each.sequential is not None for each in (before, now))
    if tests == 1:
        return (
            f"{_AGAIN}{'without' if now.sequential else 'with'} --sequential: the two tests together err more"
            " often than either says"
        )
    if tests == 0 and before.episodes_sha256 != now.episodes_sha256:
        return (
            f"{_AGAIN}of other episodes: to look at a growing number until a verdict pleases errs more often"
            " than it says; --sequential is for that"
        )
    return next((note for note in before.notes if note.startswith(_AGAIN)), None)


def check_margin(margin: float) -> None:
    """Refuses a margin that is no share.

    Raises: HarnessError "margin-impossible".
    """
    if not (math.isfinite(margin) and 0 < margin < 1):
        raise HarnessError(
            "margin-impossible",
            "the margin is the share of successes by which a rate may be lower and still reproduce",
            got=margin,
            need="a number above 0 and below 1",
            fix=f"give {MARGIN} for two points",
        )


def check_judged(against: RunDir | str | None, margin: float, *, sequential: bool) -> None:
    """Refuses what cannot be judged, before any episode is driven.

    Raises: as `judge`.
    """
    check_margin(margin)
    theirs = read_recorded(against) if isinstance(against, RunDir) else against
    if sequential and not isinstance(theirs, Recorded):
        raise _sequential_impossible("order mixed", theirs)


def evaluation_of(
    ours: Recorded, theirs: Recorded | Claim | None, *, margin: float = MARGIN, sequential: bool = False
) -> Evaluation:
    """The evaluation of episodes that were read. Writes nothing."""
    side = side_of(ours)
    tasks, suites, total = rates_of(ours.asked, side.episodes)
    setting, digest = ours.setting, ours.episodes.sha256()
    found = Evaluation(
        inputs=sha256_json(
            [setting.sha256(), digest, margin, sequential, _identity(theirs), setting.asked.model_dump()]
        ),
        setting=setting,
        setting_sha256=setting.sha256(),
        episodes_sha256=digest,
        tasks=tasks,
        suites=suites,
        all=total,
        interval=INTERVAL,
        margin=margin,
        errors=dict(Counter(each.error.code for each in side.episodes if each.error).most_common()),
        unreadable=len(ours.episodes.unreadable),
        repeated=len(ours.episodes.repeated),
        conflicts=len(ours.episodes.conflicts),
        notes=_notes(ours, side.episodes),
    )
    if theirs is None:
        return found
    other = theirs if isinstance(theirs, Claim) else side_of(theirs)
    fields = (
        comparable.of_claim(theirs) if isinstance(theirs, Claim) else comparable.of_setting(theirs.setting)
    )
    apart = comparable.apart(comparable.of_setting(setting), fields, side.suites)
    doubts = _doubts(ours, theirs)
    weighed = weigh(side, other, apart, margin, doubts)
    known = of_claimed(theirs) if isinstance(theirs, Claim) else of_policy(theirs.setting.evaluated)
    overall = next((each for each in weighed.differences if each.scope == ALL), None)
    test, verdict, reason = None, weighed.verdict, weighed.reason
    if sequential and isinstance(other, Side) and verdict != "not comparable":
        test = in_order(side, other, ours.asked, margin)
        verdict, reason = doubted(*_by_test(test, overall), doubts)
    return found.model_copy(
        update={
            "against": _against(theirs),
            "verdict": verdict,
            "field": weighed.field,
            "reason": reason,
            "apart": apart,
            "differences": weighed.differences,
            "sequential": test,
            "why": why(of_policy(setting.evaluated), known, apart, overall),
            "notes": [*found.notes, *weighed.notes, *_unknown_notes(apart)],
        }
    )


def _other(ours: Recorded, against: RunDir | str | None) -> Recorded | Claim | None:
    if against is None:
        return None
    if isinstance(against, str):
        return claim_of(against)
    check_another(ours.directory, against)
    return read_recorded(against)


def check_another(directory: RunDir, against: RunDir | str | None) -> None:
    """Refuses to compare an evaluation with itself.

    Raises: HarnessError "evaluation-itself".
    """
    if isinstance(against, RunDir) and against.path.resolve() == directory.path.resolve():
        raise HarnessError(
            "evaluation-itself",
            f"{against.path} is compared with itself",
            need="another evaluation, or a published claim",
            fix=f"give another directory, or {next(iter(CLAIMS))}",
        )


def _check_sequential(ours: Recorded, theirs: Recorded | Claim | None) -> None:
    if not isinstance(theirs, Recorded) or ours.setting.asked.order != "mixed":
        raise _sequential_impossible(f"order {ours.setting.asked.order}", _identity(theirs))


def _sequential_impossible(order: str, theirs: str | None) -> HarnessError:
    return HarnessError(
        "sequential-impossible",
        "the test that stops early pairs episodes in an order that mixes the tasks; this evaluation has"
        " none, or nothing to pair with",
        got=f"{order}, against {theirs or 'nothing'}",
        need="order mixed, and another evaluation of the same scenes",
        fix="evaluate with --sequential and --compare DIR of another evaluation, or without --sequential",
    )


def side_of(recorded: Recorded) -> Side:
    """The asked episodes of a directory; lines of episodes that are no longer asked are left out."""
    asked = set(recorded.asked)
    return Side([each for key, each in recorded.episodes.found.items() if key in asked], recorded.asked)


def _identity(theirs: Recorded | Claim | None) -> str:
    if isinstance(theirs, Recorded):
        return f"{theirs.setting.sha256()} {theirs.episodes.sha256()}"
    return theirs.name if theirs else ""


def _against(theirs: Recorded | Claim) -> Against:
    if isinstance(theirs, Claim):
        return Against(kind="claim", name=theirs.name, source=theirs.source, claimed=theirs.suites)
    return Against(
        kind="evaluation",
        name=theirs.name,
        source=str(theirs.directory.path),
        episodes_sha256=theirs.episodes.sha256(),
    )


def _by_test(test: Sequential, overall: Difference | None) -> tuple[Word, str]:
    if test.verdict:
        return test.verdict, (
            f"the paired test stopped after {test.stopped_at} pairs, wrong with probability {test.alpha:g} at"
            f" most: evidence {test.e_differs:.3g} for a difference, {test.e_margin:.3g} for none beyond the"
            " margin"
        )
    more = f"; about {overall.needed:,} pairs would decide" if overall and overall.needed else ""
    return "inconclusive", (
        f"the paired test has not stopped after {test.pairs} pairs: evidence {test.e_differs:.3g} of"
        f" {1 / test.alpha:g} for a difference, {test.e_margin:.3g} of {2 / test.alpha:g} for none beyond the"
        f" margin{more}"
    )


def _doubts(ours: Recorded, theirs: Recorded | Claim) -> list[str]:
    """Why nothing is said to reproduce, whatever the interval says."""
    found = []
    for side, each in (("ours", ours), ("theirs", theirs)):
        if isinstance(each, Recorded):
            if each.episodes.conflicts:
                found.append(
                    f"{len(each.episodes.conflicts)} episodes of {side} were recorded twice with different"
                    f" contents, the first {each.episodes.conflicts[0]}"
                )
            if each.episodes.cut:
                found.append(f"the file of {side} has more lines than are read")
    return found


def _notes(recorded: Recorded, asked: list[Episode]) -> list[str]:
    """What is odd about a directory. `asked` are its episodes without those that are no longer asked."""
    episodes = recorded.episodes
    notes = list(recorded.setting.deviations and ["deviations: " + "; ".join(recorded.setting.deviations)])
    if errors := [each for each in asked if not each.measured]:
        named = ", ".join(str(each.key) for each in errors[:_MOST_NAMED])
        notes.append(f"{len(errors)} episodes were not measured and are in no rate: {named}")
    if episodes.torn:
        notes.append("the last line has no end, as after a kill; the episode is asked again by a resume")
    if episodes.unreadable:
        lines = ", ".join(map(str, episodes.unreadable[:_MOST_NAMED]))
        notes.append(f"{len(episodes.unreadable)} lines are of another form and count nowhere: {lines}")
    if episodes.repeated:
        notes.append(f"{len(episodes.repeated)} episodes were recorded more than once, each time the same")
    if episodes.conflicts:
        notes.append(
            f"{len(episodes.conflicts)} episodes were recorded twice with different contents; the first"
            f" counts: {', '.join(map(str, episodes.conflicts[:_MOST_NAMED]))}"
        )
    if episodes.cut:
        notes.append("the file has more lines than are read")
    if stray := len(episodes.found) - len(asked):
        notes.append(f"{stray} recorded episodes are not asked and count nowhere")
    return notes + _copies(asked)


def _copies(episodes: list[Episode]) -> list[str]:
    scenes = scenes_of(episodes)
    if not scenes.copies:
        return []
    return [
        f"pseudo-replication: {scenes.copies} episodes have the scene of another episode of their task; the"
        f" {sum(each.measured for each in episodes)} episodes count as {len(scenes.outcomes)} scenes"
    ]


def _unknown_notes(apart: list[Apart]) -> list[str]:
    fields = [each.field for each in apart if each.status == "unknown"]
    return [f"not known on a side, so not compared: {', '.join(fields)}"] if fields else []
