"""Which episodes are asked, in which order, and which are left after a stop.

An episode is named by its key alone, so neither the order nor the number of workers changes what it is.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from harness.artifacts.episodes import Episode, Key
from harness.artifacts.setting import Asked
from harness.errors import HarnessError
from harness.evaluate.claims import STATES
from harness.simulate.protocol import SUITES
from harness.strict import parse

MOST_WORKERS = 256


def asked(
    suites: Sequence[str],
    *,
    tasks: Mapping[str, Sequence[int]] | None = None,
    episodes: int = STATES,
    repeats: int = 1,
    seed: int = 0,
    mixed: bool = False,
    only: Iterable[tuple[str, int, int]] | None = None,
) -> Asked:
    """The asked episodes: of each suite all tasks, or those that `tasks` names, each `episodes` times.

    `only`: of them only these (suite, task, episode).
    Raises: HarnessError "suite-unknown", "task-unknown", "episodes-impossible", "schedule-invalid".
    """
    _check_suites(suites, tasks or {})
    wanted = {suite: _tasks(suite, (tasks or {}).get(suite)) for suite in dict.fromkeys(suites)}
    if not 1 <= episodes <= STATES:
        raise HarnessError(
            "episodes-impossible",
            f"a task of LIBERO has {STATES} initial states; more episodes would repeat scenes",
            got=episodes,
            need=f"1 to {STATES}",
            fix=f"ask for {STATES} episodes of a task at most; repeats drive each scene with other noise",
        )
    return parse(
        Asked,
        {
            "tasks": wanted,
            "episodes": episodes,
            "repeats": repeats,
            "seed": seed,
            "order": "mixed" if mixed else "task",
            "only": None if only is None else sorted(only),
        },
        where="the schedule",
        code="schedule-invalid",
        fix="repeats from 1 to 1000, a seed from 0 to 2147483647",
    )


def _check_suites(suites: Sequence[str], tasks: Mapping[str, Sequence[int]]) -> None:
    for suite in [*suites, *tasks]:
        if suite not in SUITES:
            near = (difflib.get_close_matches(suite, SUITES, n=1, cutoff=0.3) or ["libero_10"])[0]
            raise HarnessError(
                "suite-unknown",
                f"there is no suite {suite!r}",
                got=suite,
                need=f"suites out of {', '.join(SUITES)}",
                fix=f"did you mean {near}?",
            )
    if not suites or set(tasks) - set(suites):
        raise HarnessError(
            "suite-unknown",
            "tasks are given of a suite that is not asked" if suites else "no suite is asked",
            got=", ".join(tasks) or "nothing",
            need=f"suites out of {', '.join(SUITES)}",
            fix="ask for the suite of each task",
        )


def _tasks(suite: str, tasks: Sequence[int] | None) -> list[int]:
    """The asked tasks of a suite in their order; all of them for None."""
    wanted = sorted(set(range(SUITES[suite]) if tasks is None else tasks))
    beyond = [task for task in wanted if not 0 <= task < SUITES[suite]]
    if beyond or not wanted:
        raise HarnessError(
            "task-unknown",
            f"{suite} has no task {beyond[0]}" if beyond else f"no task of {suite} is asked",
            got=", ".join(map(str, beyond)) or "none",
            need=f"tasks from 0 to {SUITES[suite] - 1}",
            fix="give numbers of that range, or no tasks for all of them",
        )
    return wanted


def keys(asked: Asked) -> list[Key]:
    """The asked episodes in the order in which they are to be driven.

    "task": by suite, task and episode. "mixed": the first episode of every task, then the second of every
    task, each time by a hash of the seed and the key. So a schedule of more episodes begins with that of
    fewer, and a test that has looked at those goes on as if it had been asked for more at once.
    """
    found = [
        Key(suite, task, episode, repeat)
        for suite in sorted(asked.tasks)
        for task in sorted(asked.tasks[suite])
        for repeat in range(asked.repeats)
        for episode in range(asked.episodes)
    ]
    if asked.only is not None:
        named = set(asked.only)
        found = [key for key in found if key[:3] in named]
    if asked.order == "task":
        return found

    def turn(key: Key) -> tuple[int, int, bytes]:
        return key.repeat, key.episode, hashlib.sha256(f"{asked.seed} {tuple(key)}".encode()).digest()

    return sorted(found, key=turn)


def remaining(asked: Asked, episodes: Iterable[Episode]) -> list[Key]:
    """The asked episodes that are not measured yet, in their order. One with an error is asked again."""
    done = {episode.key for episode in episodes if episode.measured}
    return [key for key in keys(asked) if key not in done]


class Dispatch:
    """Hands the episodes that are left to workers, each once. Called under a lock.

    With `mixed` they are handed out in their order. Else a worker stays with its task as long as it can,
    since an environment is made for each task that a worker meets; then it takes a task that nobody drives,
    and at last shares one.
    """

    def __init__(self, left: Sequence[Key], *, mixed: bool = False) -> None:
        self._tasks: dict[object, deque[Key]] = {}
        for key in left:
            self._tasks.setdefault(None if mixed else (key.suite, key.task), deque()).append(key)
        self._driven: dict[int, object] = {}

    def take(self, worker: int) -> Key | None:
        """The next episode of a worker; None if nothing is left."""
        free = [task for task in self._tasks if task not in self._driven.values()]
        mine = self._driven.get(worker)
        if mine not in self._tasks:
            longest = max(self._tasks, key=lambda task: len(self._tasks[task]), default=None)
            mine = next(iter(free), longest)
        if mine not in self._tasks:
            return None
        self._driven[worker] = mine
        found = self._tasks[mine].popleft()
        if not self._tasks[mine]:
            del self._tasks[mine]
        return found

    def leave(self, worker: int) -> None:
        """Frees the task of a worker that has ended."""
        self._driven.pop(worker, None)


def check_workers(workers: int) -> None:
    """Refuses a number of workers that no machine drives.

    Raises: HarnessError "workers-impossible".
    """
    if not 1 <= workers <= MOST_WORKERS:
        raise HarnessError(
            "workers-impossible",
            "episodes are driven by at least one worker",
            got=workers,
            need=f"1 to {MOST_WORKERS}",
            fix="give as many workers as there are processor cores",
        )
