"""An evaluation as coordinates for inline SVG: rates by task, a strip of episodes a task, where it failed.

Beside another evaluation each task has a second rate, and a strip says who succeeded.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import median
from typing import Literal, NamedTuple

from harness.artifacts.episodes import EPISODES, Episode, Episodes, Key, read_episodes
from harness.artifacts.evaluation import ALL, Evaluation, Rate
from harness.artifacts.setting import Asked
from harness.errors import HarnessError
from harness.report.template import template
from harness.run.directory import RunDir
from harness.run.status import why

# Drawing units. The browser keeps their proportion.
WIDTH = 900
_LABEL, _PLOT_LEFT, _PLOT_RIGHT = 265, 280, 640
_ROW, _HEADING, _AXIS, _PAIR = 17, 26, 24, 5
_CELL, _MOST_CELLS = 8, 150
_LONGEST = 40
_MOST_FAILED = 12
# Tasks with failures in the table, and parts of a goal that are named of one.
_MOST_TASKS, _MOST_PARTS = 40, 4

Side = Literal["ours", "theirs"]


class Mark(NamedTuple):
    """A rate with its interval, in drawing units. `words` say it."""

    x: float
    low: float
    high: float
    y: float
    side: Side
    words: str


class Line(NamedTuple):
    """A line of the picture: a suite or one of its tasks. `claimed` is where a published rate lies."""

    label: str
    y: float
    heading: bool
    marks: list[Mark]
    numbers: str
    claimed: float | None


class Forest(NamedTuple):
    """Rates by task, with their intervals. `ticks` are (position, text) of the axis."""

    lines: list[Line]
    ticks: list[tuple[float, str]]
    height: float


class Strip(NamedTuple):
    """The episodes of a task as squares; one path for each kind of them. `failed` names the failures."""

    label: str
    paths: list[tuple[str, str]]
    width: int
    counts: str
    failed: str


class Failed(NamedTuple):
    """The failures of a task: how many reached nothing of the goal, some of it, and which parts how often."""

    label: str
    failures: int
    measured: int
    nothing: int | None
    some: int | None
    parts: str
    usual: str


def render(run: RunDir, other: RunDir | None = None) -> str:
    """The page of an evaluation, or of two side by side, as HTML that needs no network and no script.

    Raises: HarnessError "evaluation-missing" without evaluation.json; as `RunDir.read`; UnsafeFile.
    """
    problems: list[str] = []
    evaluation, episodes = _read(run, problems)
    beside = _read(other, problems) if other else None
    page = template("evaluation_page.html.j2", percent=_percent, points=_points)
    return page.render(
        name=run.path.absolute().name,
        problems=problems,
        **values(evaluation, episodes, beside, other.path.absolute().name if other else ""),
    )


def values(
    evaluation: Evaluation,
    episodes: Episodes,
    beside: tuple[Evaluation, Episodes] | None = None,
    other_name: str = "",
) -> dict[str, object]:
    """What the section's template shows."""
    return {
        "evaluation": evaluation,
        "other": beside[0] if beside else None,
        "other_name": other_name,
        "forest": forest(evaluation, beside[0] if beside else None),
        "forest_width": WIDTH,
        "plot": (_PLOT_LEFT, _PLOT_RIGHT),
        "label_x": _LABEL,
        "strips": strips(evaluation, episodes, beside[1] if beside else None),
        "cell": _CELL,
        "failed": failures(evaluation, episodes),
        "scopes": [each for each in evaluation.differences if each.scope != ALL]
        + [each for each in evaluation.differences if each.scope == ALL],
        "marks": {"reproduces": "good", "above": "good", "below": "bad"},
    }


def _read(run: RunDir, problems: list[str]) -> tuple[Evaluation, Episodes]:
    evaluation = run.read(Evaluation)
    if evaluation is None:
        raise HarnessError(
            "evaluation-missing",
            f"{run.path} holds no {Evaluation.FILE}",
            need="the directory of an evaluation that was judged",
            fix="evaluate there, or give the directory of another evaluation",
        )
    try:
        found = read_episodes(run.path / EPISODES, run.path)
    except (OSError, HarnessError) as error:
        problems.append(f"{EPISODES} of {run.path.absolute().name} cannot be read: {why(error)}")
        found = None
    if found is not None and found.sha256() != evaluation.episodes_sha256:
        problems.append(
            f"{EPISODES} of {run.path.absolute().name} has changed since {Evaluation.FILE} was written: the"
            " rates are of the older episodes"
        )
    return evaluation, found or Episodes({})


def forest(evaluation: Evaluation, other: Evaluation | None = None) -> Forest:
    """A line for each suite, and below it one for each task; then all."""
    theirs = {(rate.suite, rate.task): rate for rate in _every(other)} if other else {}
    rates = [(rate, theirs.get((rate.suite, rate.task))) for rate in _in_lines(evaluation)]
    lows = [
        each.interval.low for pair in rates for each in pair if each is not None and each.rate is not None
    ]
    floor = math.floor(min([*lows, 0.9]) * 10) / 10
    wide = _PLOT_RIGHT - _PLOT_LEFT

    def x(rate: float) -> float:
        return _PLOT_LEFT + (min(max(rate, floor), 1.0) - floor) / (1 - floor) * wide

    lines, y = [], float(_AXIS)
    for rate, their in rates:
        heading = rate.task is None
        y += _HEADING if heading else _ROW
        pair: list[tuple[Side, Rate]] = [("ours", rate), *([("theirs", their)] if their else [])]  # type: ignore[list-item]
        claim = _claimed(evaluation, rate) if heading else None
        lines.append(
            Line(
                _label(evaluation, rate),
                y,
                heading,
                [
                    Mark(
                        x(each.rate),
                        x(each.interval.low),
                        x(each.interval.high),
                        y + (0 if their is None else -_PAIR / 2 if side == "ours" else _PAIR / 2),
                        side,
                        _rate_words(each),
                    )
                    for side, each in pair
                    if each.rate is not None
                ],
                _numbers(rate, their),
                None if claim is None else x(claim),
            )
        )
    return Forest(lines, [(x(tenths / 10), f"{10 * tenths} %") for tenths in _ticks(floor)], y + _ROW)


def _ticks(floor: float) -> list[int]:
    """Tenths from the floor to 100 %, every second of them if they are many."""
    first = round(10 * floor)
    step = 1 if first >= 5 else 2
    return list(range(10, first - 1, -step))[::-1]


def _claimed(evaluation: Evaluation, rate: Rate) -> float | None:
    """The published rate of a suite, or of all suites if each of them has one."""
    claimed = evaluation.against.claimed if evaluation.against else {}
    suites = [each.suite for each in evaluation.suites] if rate.suite == ALL else [rate.suite]
    if not all(suite in claimed for suite in suites):
        return None
    each = [claimed[suite] for suite in suites]
    return sum(one.successes for one in each) / sum(one.episodes for one in each)


def _every(evaluation: Evaluation) -> list[Rate]:
    return [*evaluation.suites, *evaluation.tasks, evaluation.all]


def _in_lines(evaluation: Evaluation) -> list[Rate]:
    """Each suite with its tasks behind it; all at the end, if there are several suites."""
    found = []
    for suite in evaluation.suites:
        found += [suite, *(task for task in evaluation.tasks if task.suite == suite.suite)]
    return [*found, evaluation.all] if len(evaluation.suites) > 1 else found


def _label(evaluation: Evaluation, rate: Rate) -> str:
    if rate.task is None:
        return "all suites" if rate.suite == ALL else rate.suite
    return task_label(evaluation, rate.suite, rate.task)


def task_label(evaluation: Evaluation, suite: str, task: int) -> str:
    """The number of a task and its words, shortened."""
    prompts = evaluation.setting.prompts.get(suite, [])
    words = prompts[task] if task < len(prompts) else ""
    words = words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1].rstrip()}…"
    return f"{task} {words}" if words else f"task {task}"


def _numbers(rate: Rate, other: Rate | None) -> str:
    if other is None:
        return _rate_words(rate)
    return " | ".join(
        "none" if each.rate is None else f"{each.successes}/{each.measured} = {_percent(each.rate)}"
        for each in (rate, other)
    )


def _rate_words(rate: Rate) -> str:
    if rate.rate is None:
        return "not measured"
    low, high = rate.interval.low, rate.interval.high
    return f"{rate.successes}/{rate.measured} = {_percent(rate.rate)} ({100 * low:.1f}–{100 * high:.1f})"


def strips(evaluation: Evaluation, episodes: Episodes, others: Episodes | None = None) -> list[Strip]:
    """A strip for each task, its episodes in the order of their numbers; at most 150 of them."""
    asked = evaluation.setting.asked
    found = []
    for suite in sorted(asked.tasks):
        for task in sorted(asked.tasks[suite]):
            keys = _keys(asked, suite, task)[:_MOST_CELLS]
            kinds = [_kind(episodes.found.get(key), others, key) for key in keys]
            failed = [str(key.episode) for key, kind in zip(keys, kinds, strict=True) if kind in _FAILED]
            failed = list(dict.fromkeys(failed))
            more = f" and {len(failed) - _MOST_FAILED} more" if len(failed) > _MOST_FAILED else ""
            found.append(
                Strip(
                    f"{suite} {task_label(evaluation, suite, task)}",
                    [(kind, _path(kind, kinds)) for kind in dict.fromkeys(kinds)],
                    len(keys) * _CELL,
                    ", ".join(f"{count} {_WORDS[kind]}" for kind, count in Counter(kinds).most_common()),
                    ", ".join(failed[:_MOST_FAILED]) + more,
                )
            )
    return found


_FAILED = frozenset({"failure", "theirs", "neither"})
_WORDS = {
    "success": "succeeded",
    "failure": "failed",
    "error": "not measured",
    "missing": "missing",
    "both": "both",
    "ours": "only ours",
    "theirs": "only theirs",
    "neither": "neither",
    "alone": "not on both sides",
}


def _keys(asked: Asked, suite: str, task: int) -> list[Key]:
    return [
        Key(suite, task, episode, repeat)
        for episode in range(asked.episodes)
        for repeat in range(asked.repeats)
    ]


def _kind(episode: Episode | None, others: Episodes | None, key: Key) -> str:
    if others is None:
        return "missing" if episode is None else episode.outcome
    other = others.found.get(key)
    if episode is None or other is None or not (episode.measured and other.measured):
        return "alone"
    if episode.scene_sha256 != other.scene_sha256:
        return "alone"
    good = (episode.outcome == "success", other.outcome == "success")
    return {(True, True): "both", (True, False): "ours", (False, True): "theirs"}.get(good, "neither")


def _path(kind: str, kinds: list[str]) -> str:
    """Squares of one kind. What is well stays low, so that the picture is read without its colours too."""
    tall = 5 if kind in ("success", "both") else 12
    return "".join(
        f"M{i * _CELL} {14 - tall}h{_CELL - 2}v{tall}h-{_CELL - 2}z"
        for i, each in enumerate(kinds)
        if each == kind
    )


def failures(evaluation: Evaluation, episodes: Episodes) -> list[Failed]:
    """Where each task with failures failed, the most failures first."""
    by_task: dict[tuple[str, int], list[Episode]] = {}
    for episode in episodes.measured:
        by_task.setdefault((episode.suite, episode.task), []).append(episode)
    rows = []
    for (suite, task), every in by_task.items():
        failed = [each for each in every if each.outcome == "failure"]
        if not failed:
            continue
        told = [each for each in failed if each.reached]
        reached = [[step for step in each.reached.values() if step is not None] for each in told]
        rows.append(
            Failed(
                f"{suite} {task_label(evaluation, suite, task)}",
                len(failed),
                len(every),
                sum(not steps for steps in reached) if told else None,
                sum(bool(steps) for steps in reached) if told else None,
                _parts(told),
                _usual(every, failed),
            )
        )
    return sorted(rows, key=lambda row: -row.failures)[:_MOST_TASKS]


def _parts(failed: list[Episode]) -> str:
    """How many of the failures reached each part of the goal, and at which step."""
    names = list(dict.fromkeys(name for each in failed for name in each.reached))[:_MOST_PARTS]
    found = []
    for name in names:
        steps = [step for each in failed if (step := each.reached.get(name)) is not None]
        at = f" (step {median(steps):.0f})" if steps else ""
        found.append(f"{name}: {len(steps)} of {len(failed)}{at}")
    return "; ".join(found)


def _usual(every: list[Episode], failed: list[Episode]) -> str:
    """The steps that a success took, and when the failures ended."""
    good = [each.steps for each in every if each.outcome == "success"]
    ended = f"failures ended at {median(each.steps for each in failed):.0f}"
    if not good:
        return f"none succeeded; {ended}"
    return f"successes took {median(good):.0f}, {max(good)} at most; {ended}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")
