"""The page of an evaluation, with its rates by task as coordinates for inline SVG.

Beside another evaluation each task has a second rate, and a strip says who succeeded.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from markupsafe import Markup

from harness.artifacts.episodes import EPISODES, Episodes, read_episodes
from harness.artifacts.evaluation import ALL, Evaluation, Rate
from harness.errors import HarnessError
from harness.report.episode_strips import failures, strips, task_label, task_words
from harness.report.template import template
from harness.run.directory import RunDir
from harness.run.evaluations import evaluations_of, name_of, sentence
from harness.run.status import why

# Drawing units. The browser keeps their proportion.
WIDTH = 900
_LABEL, _PLOT_LEFT, _PLOT_RIGHT = 265, 280, 640
_ROW, _HEADING, _AXIS, _PAIR = 17, 26, 24, 5

Side = Literal["here", "there"]


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
    words: str
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


def render(run: RunDir, other: RunDir | None = None) -> str:
    """The page of an evaluation, or of two side by side, as HTML that needs no network and no script.

    Raises: HarnessError "evaluation-missing" without evaluation.json; as `RunDir.read`; UnsafeFile.
    """
    problems: list[str] = []
    evaluation, episodes = _read(run, problems)
    beside = _read(other, problems) if other else None
    page = template("evaluation_page.html.j2", percent=_percent, points=_points)
    return page.render(
        name=name_of(run.path),
        problems=problems,
        **values(evaluation, episodes, beside, name_of(other.path) if other else ""),
    )


def section(run: RunDir, other: RunDir | None, problems: list[str]) -> Markup | None:
    """The section of a run's newest evaluation, beside that of another run; None without one."""
    found = _judged(run, problems)
    if not found:
        return None
    theirs = _judged(other, problems) if other else []
    (*older, (newest, evaluation)) = found
    episodes = _episodes(newest, evaluation, problems)
    beside = (theirs[-1][1], _episodes(*theirs[-1], problems)) if theirs else None
    shown = values(
        evaluation,
        episodes,
        beside,
        name_of(theirs[-1][0].path) if theirs else "",
    )
    page = template("evaluation.html.j2", percent=_percent, points=_points)
    more = [(each.path.name, sentence(judged)) for each, judged in older]
    return Markup(page.render(**{**shown, "named": newest.path.name, "more": more[::-1]}))


def _judged(run: RunDir, problems: list[str]) -> list[tuple[RunDir, Evaluation]]:
    """The evaluations of a run, the newest last. One that cannot be read is left out and named."""
    found = []
    for each in evaluations_of(run.path):
        try:
            judged = each.read(Evaluation)
        except (HarnessError, OSError) as error:
            problems.append(f"{Evaluation.FILE} of {each.path.name} cannot be used: {why(error)}")
            continue
        found += [] if judged is None else [(each, judged)]
    return found


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
        "failed": failures(evaluation, episodes),
        "scopes": [each for each in evaluation.differences if each.scope != ALL]
        + [each for each in evaluation.differences if each.scope == ALL],
        "marks": {"reproduces": "good", "above": "good", "below": "bad"},
        "named": "",
        "more": [],
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
    return evaluation, _episodes(run, evaluation, problems)


def _episodes(run: RunDir, evaluation: Evaluation, problems: list[str]) -> Episodes:
    """The episodes that were judged. What is wrong with their file is named."""
    found = None
    try:
        found = read_episodes(run.path / EPISODES, run.path)
        if found is None:
            problems.append(f"{run.path.absolute().name} has no {EPISODES}: its episodes are not shown")
    except (OSError, HarnessError) as error:
        problems.append(f"{EPISODES} of {run.path.absolute().name} cannot be read: {why(error)}")
    if found is not None and found.sha256() != evaluation.episodes_sha256:
        problems.append(
            f"{EPISODES} of {run.path.absolute().name} has changed since {Evaluation.FILE} was written: the"
            " rates are of the older episodes"
        )
    return found or Episodes({})


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
        pair: list[tuple[Side, Rate]] = [("here", rate), *([("there", their)] if their else [])]  # type: ignore[list-item]
        claim = _claimed(evaluation, rate) if heading else None
        lines.append(
            Line(
                _label(evaluation, rate),
                "" if rate.task is None else task_words(evaluation, rate.suite, rate.task),
                y,
                heading,
                [
                    Mark(
                        x(each.rate),
                        x(each.interval.low),
                        x(each.interval.high),
                        y + (0 if their is None else -_PAIR / 2 if side == "here" else _PAIR / 2),
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


def _numbers(rate: Rate, other: Rate | None) -> str:
    if other is None:
        return _rate_words(rate)
    return " | ".join("none" if each.rate is None else _percent(each.rate) for each in (rate, other))


def _rate_words(rate: Rate) -> str:
    if rate.rate is None:
        return "not measured"
    low, high = rate.interval.low, rate.interval.high
    return f"{rate.successes}/{rate.measured} = {_percent(rate.rate)} ({100 * low:.1f}–{100 * high:.1f})"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")
