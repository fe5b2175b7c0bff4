"""The episodes of an evaluation as coordinates for inline SVG: a strip a task, and where each task failed."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import NamedTuple

from harness.artifacts.episodes import Episode, Episodes, Key
from harness.artifacts.evaluation import Evaluation
from harness.artifacts.setting import Asked

# A square of a strip, in drawing units.
CELL = 8
_MOST_CELLS, _MOST_FAILED, _LONGEST = 150, 9, 40
# Tasks with failures in the table, and parts of a goal that are named of one.
_MOST_TASKS, _MOST_PARTS = 40, 4


class Strip(NamedTuple):
    """The episodes of a task as squares; one path for each kind of them. `failed` names the failures."""

    suite: str
    label: str
    words: str
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


def task_label(evaluation: Evaluation, suite: str, task: int) -> str:
    """The number of a task and its words, shortened to those that tell it from the others of its suite."""
    prompts = evaluation.setting.prompts.get(suite, [])
    if task >= len(prompts) or not prompts[task]:
        return f"task {task}"
    words = prompts[task]
    if len(words) > _LONGEST:
        first, last = _shared(prompts)
        own = prompts[task].split()[first : len(prompts[task].split()) - last]
        words = " ".join([*(["…"] if first else []), *own, *(["…"] if last else [])])
    return f"{task} {words if len(words) <= _LONGEST else f'{words[: _LONGEST - 1].rstrip()}…'}"


def _shared(prompts: list[str]) -> tuple[int, int]:
    """How many words all long prompts begin with, and end with, if they leave a word of each."""
    every = [prompt.split() for prompt in prompts if len(prompt) > _LONGEST]
    if len(every) < 2:
        return 0, 0
    room = min(map(len, every)) - 1
    first = _alike(every)
    last = _alike([words[::-1] for words in every])
    return min(first, room), min(last, max(room - first, 0))


def _alike(every: list[list[str]]) -> int:
    return next(
        (k for k, column in enumerate(zip(*every, strict=False)) if len(set(column)) > 1),
        min(map(len, every)),
    )


def task_words(evaluation: Evaluation, suite: str, task: int) -> str:
    """All words of a task, for whoever points at it."""
    prompts = evaluation.setting.prompts.get(suite, [])
    return f"{suite} task {task}" + (f": {prompts[task]}" if task < len(prompts) and prompts[task] else "")


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
                    suite,
                    task_label(evaluation, suite, task),
                    task_words(evaluation, suite, task),
                    [(kind, _path(kind, kinds)) for kind in dict.fromkeys(kinds)],
                    len(keys) * CELL,
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
        f"M{i * CELL} {14 - tall}h{CELL - 2}v{tall}h-{CELL - 2}z"
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
                f"{suite} · {task_label(evaluation, suite, task)}",
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
    return f"a success took {median(good):.0f} (median), {max(good)} at most; {ended}"
