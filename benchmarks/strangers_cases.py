"""A case by its number: an honest input, its changes by a stranger, and the verbs that open it.

Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.strangers_child import Call
from benchmarks.strangers_files import remove
from benchmarks.strangers_kinds import KINDS, RECEIVED, Option, Place


class Case(NamedTuple):
    number: int
    kind: str
    what: str
    calls: list[Call]


def make(number: int, seed: int, place: Place) -> Case:
    """The case of this number, laid out in the world."""
    rng = random.Random(f"{seed}/{number}")
    kind = kind_of(number)
    what, options = KINDS[kind](place, rng)
    calls = [_choose(options, rng)() for _ in range(rng.choice([1, 1, 2]))]
    # Half of the tables are written for a terminal.
    return Case(number, kind, what, [call._replace(coloured=rng.random() < 0.5) for call in calls])


def kind_of(number: int) -> str:
    """Of 50 cases in a row, so many of each kind."""
    return _TURNS[number * 7 % len(_TURNS)]


def _choose(options: list[Option], rng: random.Random) -> Callable[[], Call]:
    return rng.choices([call for _, call in options], [weight for weight, _ in options])[0]


_SHARES = {
    "run": 13,
    "checkpoint": 9,
    "dataset": 8,
    "log": 7,
    "recipe": 5,
    "statistics": 3,
    "pages": 4,
    "command": 1,
}
_TURNS = [kind for kind, share in _SHARES.items() for _ in range(share)]


def keep(case: Case, place: Place, folder: Path) -> Path:
    """Stores the input of a case: FIFOs and links as they are, holes as holes."""
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.number}-{case.kind}.tar"
    remove(path)
    names = [name for name in (RECEIVED, "received") if (place.world.root / name).exists()]
    subprocess.run(
        ["tar", "-cSf", str(path), "-C", str(place.world.root), *names], capture_output=True, check=False
    )
    return path
