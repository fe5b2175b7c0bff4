"""Dimensions of a vector in a recipe, such as `[0-5, 7]`. The written form is one for each set."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

# More than any robot has. It bounds what a range of a received recipe may expand to.
_MOST = 4096
_RANGE = re.compile(r"\A\s*+(\d{1,6})\s*+(?:-\s*+(\d{1,6})\s*+)?")


def numbers_of(ranges: list[str] | None) -> list[int]:
    """The sorted dimensions of ranges in written form; none for None."""
    found: set[int] = set()
    for text in ranges or []:
        first, _, last = text.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


def ranges_of(numbers: list[int]) -> list[str]:
    """The written form of a set of dimensions: ascending, neighbours joined. `[0, 1, 2, 5]` → `0-2`, `5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def _written(value: Any) -> Any:
    """The written form of what a person gives: numbers, ranges, or one text with commas. None if empty.

    Raises: ValueError.
    """
    if value is None:
        return None
    parts = value if isinstance(value, list) else [value]
    numbers: list[int] = []
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise ValueError(f"{str(part)[:50]} is no dimension: give numbers or ranges, such as 0-5,7")
        for text in str(part).split(","):
            match = _RANGE.fullmatch(text)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last or last >= _MOST:
                raise ValueError(
                    f"{text[:50]!r} is no range of dimensions: give ascending ones below {_MOST},"
                    " such as 0-5,7"
                )
            numbers += range(first, last + 1)
    return ranges_of(numbers) or None


Dimensions = Annotated[list[str] | None, BeforeValidator(_written)]
