"""Rates with intervals, from episodes. The unit is the scene: repeats of one are no more of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from harness.artifacts.episodes import Episode, Key
from harness.artifacts.evaluation import ALL, Range, Rate
from harness.evaluate.intervals import Ends, of_other_tasks, wilson


class TaskKey(NamedTuple):
    """A task of a suite."""

    suite: str
    task: int


class Scene(NamedTuple):
    """A scene of a task, by its hash."""

    task_key: TaskKey
    sha256: str


def scene_of(episode: Episode) -> Scene | None:
    """The scene of a measured episode; None for one without an outcome or without a hash."""
    if not episode.measured or episode.scene_sha256 is None:
        return None
    return Scene(TaskKey(episode.suite, episode.task), episode.scene_sha256)


class Scenes(NamedTuple):
    """The outcomes of each scene, and the episode numbers under which it was driven."""

    outcomes: dict[Scene, list[bool]]
    numbers: dict[Scene, set[int]]

    @property
    def copies(self) -> int:
        """How many episodes have the scene of an episode of another number, and so are no more scenes."""
        return sum(len(numbers) - 1 for numbers in self.numbers.values())

    def rates(self) -> dict[TaskKey, dict[str, float]]:
        """The mean of each scene, by task."""
        found: dict[TaskKey, dict[str, float]] = defaultdict(dict)
        for scene, outcomes in self.outcomes.items():
            found[scene.task_key][scene.sha256] = sum(outcomes) / len(outcomes)
        return dict(found)


def scenes_of(episodes: Iterable[Episode]) -> Scenes:
    """The scenes of the measured episodes."""
    outcomes: dict[Scene, list[bool]] = defaultdict(list)
    numbers: dict[Scene, set[int]] = defaultdict(set)
    for episode in episodes:
        scene = scene_of(episode)
        if scene is not None:
            outcomes[scene].append(episode.outcome == "success")
            numbers[scene].add(episode.episode)
    return Scenes(dict(outcomes), dict(numbers))


class Counted(NamedTuple):
    """A rate as successes of a number of episodes, with which every interval is computed.

    The rate is the mean over tasks, each with its mean over scenes. `episodes` is the number of scenes if
    each task has as many, and fewer if they are uneven: T² / Σ 1/n of a task, or what leaves the mean as much
    variance as the tasks' own rates give it, if that is fewer. A task of few scenes may be the uncertain one.
    """

    successes: float
    episodes: float

    @property
    def rate(self) -> float | None:
        return self.successes / self.episodes if self.episodes else None


def counted(by_task: Iterable[Iterable[float]]) -> Counted:
    """The rate over tasks, from the rate of each scene of each. Tasks without one are left out."""
    tasks = [list(rates) for rates in by_task]
    tasks = [rates for rates in tasks if rates]
    if not tasks:
        return Counted(0.0, 0.0)
    sizes = {len(rates) for rates in tasks}
    if len(sizes) == 1:
        return Counted(float(sum(map(sum, tasks))), float(sum(map(len, tasks))))
    mean = sum(sum(rates) / len(rates) for rates in tasks) / len(tasks)
    even = len(tasks) ** 2 / sum(1 / len(rates) for rates in tasks)
    # A success and a failure are added to each: a task of which two of two succeeded is not certain.
    smooth = [(sum(rates) + 1) / (len(rates) + 2) for rates in tasks]
    variance = sum(p * (1 - p) / len(rates) for p, rates in zip(smooth, tasks, strict=True)) / len(tasks) ** 2
    whole = sum(smooth) / len(smooth)
    episodes = min(even, whole * (1 - whole) / variance)
    return Counted(mean * episodes, episodes)


def rates_of(asked: Iterable[Key], episodes: Iterable[Episode]) -> tuple[list[Rate], list[Rate], Rate]:
    """The rate of each asked task, of each suite, and of all."""
    found = {episode.key: episode for episode in episodes}
    by_key: dict[TaskKey, list[Episode | None]] = defaultdict(list)
    for key in sorted(asked):
        by_key[TaskKey(key.suite, key.task)].append(found.get(key))
    suites = sorted({task_key.suite for task_key in by_key})
    return (
        [_rate(task_key.suite, task_key.task, {task_key: by_key[task_key]}) for task_key in sorted(by_key)],
        [
            _rate(
                suite, None, {task_key: each for task_key, each in by_key.items() if task_key.suite == suite}
            )
            for suite in suites
        ],
        _rate(ALL, None, by_key),
    )


def _rate(suite: str, task: int | None, task_keys: dict[TaskKey, list[Episode | None]]) -> Rate:
    every = [episode for each in task_keys.values() for episode in each]
    there = [episode for episode in every if episode is not None]
    scenes = scenes_of(there)
    by_task = {task_key: list(rates.values()) for task_key, rates in scenes.rates().items()}
    total = counted(by_task.values())
    these = wilson(*total)
    others = None
    if task is None and by_task:
        means = np.array([sum(rates) / len(rates) for rates in by_task.values()])
        others = of_other_tasks(means, these, total.episodes)
    measured = [episode for episode in there if episode.measured]
    return Rate(
        suite=suite,
        task=task,
        successes=sum(episode.outcome == "success" for episode in measured),
        measured=len(measured),
        errors=len(there) - len(measured),
        missing=len(every) - len(there),
        scenes=len(scenes.outcomes),
        rate=total.rate,
        interval=as_range(these),
        others=None if others is None else as_range(others),
    )


def as_range(ends: Ends) -> Range:
    return Range(low=ends.low, high=ends.high)
