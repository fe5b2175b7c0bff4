"""What is recorded, and what is held out. No number here was chosen after an evaluation.

Each task has 50 initial states, and openpi's serial loop gives each of them a pose of the fixtures. States
and poses 0 to 19 are for evaluation, which `harness evaluate --episodes 20` takes, and 20 to 49 for training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

# Short ways of tasks that the scripted policy solves nearly always.
TASKS = (("libero_spatial", 0), ("libero_object", 2), ("libero_spatial", 8))
HELD_OUT, TRAINING = range(20), range(20, 50)
EACH = 3  # attempts from each state in a round
FPS = 20  # LIBERO's control frequency; nothing is left out


class Take(NamedTuple):
    """One attempt: a task, its initial state, the poses of another reset's fixtures, a seed of the noise."""

    suite: str
    task: int
    state: int
    poses: int
    seed: int


def takes() -> Iterator[Take]:
    """All attempts in their order, without end: task by task, each state `EACH` times with other noise.

    With the n-th noise a state meets the poses of the reset 7·n further on, among those for training.
    """
    for begin in itertools.count(0, EACH):
        for suite, task in TASKS:
            for seed in range(begin, begin + EACH):
                for at, state in enumerate(TRAINING):
                    yield Take(suite, task, state, TRAINING[(at + 7 * seed) % len(TRAINING)], seed)
