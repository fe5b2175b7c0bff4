"""The part of a recipe that keeps episodes out of training, to measure on them at every save."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from harness.strict import Strict

_RANGE = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")
# More episodes than any dataset has; a longer list is a mistake.
MOST_EPISODES = 1_000_000


class Holdout(Strict):
    """The episodes that are never trained on, and what is measured on them.

    - `episodes`: how many (3), which share (0.05), or which ([0, 7, "20-29"]). A number and a share are drawn
      by `seed`.
    - `frames`: the number of their frames that each save is measured on, shared evenly by the episodes. An
      episode gives at least one.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    episodes: int | float | list[int | str]
    seed: int = Field(0, ge=0, lt=2**32)
    frames: int = Field(64, gt=0, le=1_000_000)

    @field_validator("episodes", mode="before")
    @classmethod
    def _form(cls, value: Any) -> Any:
        """One message for all forms; pydantic's own would list the faults of each."""
        count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        share = isinstance(value, float) and 0 < value < 1
        if not count and not share and not (isinstance(value, list) and value):
            raise ValueError(
                "is neither a number (3), nor a share below 1 (0.05), nor a list ([0, 7, 20-29])"
            )
        if isinstance(value, list):
            numbers(value)
        return value


def numbers(listed: list[Any]) -> list[int]:
    """The sorted episode numbers of a list such as [0, 7, "20-29"], each once.

    Raises: ValueError for an entry of another form.
    """
    found: set[int] = set()
    for entry in listed:
        if isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
            found.add(entry)
            continue
        ends = _RANGE.fullmatch(entry.replace(" ", "")) if isinstance(entry, str) else None
        if ends is None:
            raise ValueError(f"{str(entry)[:40]!r} is neither an episode's number nor a range such as 20-29")
        first, last = int(ends[1]), int(ends[2])
        if last < first or last - first >= MOST_EPISODES:
            raise ValueError(f"{str(entry)[:40]!r} is no range of episodes from low to high")
        found.update(range(first, last + 1))
    return sorted(found)
