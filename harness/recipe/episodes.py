"""Numbers of episodes as a recipe writes them: 7, "3-7", a list of these, or a file that holds them.

A recipe keeps them in one form, sorted and without repeats: runs of numbers are ranges. So two spellings of
the same episodes give the same recipe, with the same hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.received.files import read_received, there
from harness.received.json import parse_json

# DROID has 92,000 episodes, Open X-Embodiment a million over all of its datasets.
MOST_EPISODES = 1_000_000
# A list of a million numbers, one a line.
_FILE_BYTES = 16 * 1024 * 1024
_RANGE = re.compile(r"\A\s*+(\d{1,9})\s*+(?:-\s*+(\d{1,9})\s*+)?", re.ASCII)

Numbers = list[int | str]


def compact(numbers: Iterable[int]) -> Numbers:
    """The sorted numbers, with runs as ranges: {3, 4, 5, 9} → ["3-5", 9]."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [first if first == last else f"{first}-{last}" for first, last in runs]


def expanded(spelled: Any) -> set[int]:
    """The episodes that a number, a range such as "3-7", or a list of these means.

    Raises: ValueError that names what is none of these.
    """
    found: set[int] = set()
    for each in spelled if isinstance(spelled, list) else [spelled]:
        for one in each.split(",") if isinstance(each, str) else [each]:
            match = _RANGE.fullmatch(str(one)) if type(one) in (int, str) else None
            if match is None:
                raise ValueError(f"{str(each)[:80]!r} is no episode's number and no range such as 3-7")
            first = int(match[1])
            last = first if match[2] is None else int(match[2])
            if last < first:
                raise ValueError(f"the range {str(one).strip()!r} ends before it begins")
            if last >= MOST_EPISODES:
                raise ValueError(f"{last} is beyond the {MOST_EPISODES:,} episodes that a dataset may have")
            found.update(range(first, last + 1))
    return found


def canonical(spelled: Any) -> Any:
    """The numbers in the form that a recipe keeps.

    Raises: ValueError as `expanded`.
    """
    return compact(expanded(spelled))


def spelled_out(numbers: Numbers) -> str:
    """The numbers for a command line: `[3-5,9]`."""
    return f"[{','.join(map(str, numbers))}]"


def with_files_read(value: Any, path: tuple[str, ...] = ()) -> Any:
    """`value`, a recipe's part at the key `path`, with the numbers of each file that its episodes name.

    Raises: HarnessError "recipe-invalid" if such a file cannot be read or holds no numbers.
    """
    if isinstance(value, dict):
        return {key: with_files_read(inner, (*path, str(key))) for key, inner in value.items()}
    if isinstance(value, list) and path[-1:] == ("datasets",):
        return [with_files_read(inner, (*path, str(n))) for n, inner in enumerate(value)]
    if path[-2:-1] == ("episodes",) and path[-1] in ("include", "exclude") and _names_a_file(value):
        return _of_file(Path(value).expanduser(), ".".join(path))
    return value


def _names_a_file(value: Any) -> bool:
    return isinstance(value, str) and any(_RANGE.fullmatch(each) is None for each in value.split(","))


def _of_file(path: Path, key: str) -> Numbers:
    """The numbers in a file: a JSON list, or text with numbers and ranges, and comments after `#`."""
    need = "a file with numbers and ranges such as 3-7, one a line, or a JSON list of them"
    what = f"{key} names a file that cannot be used: {path}"
    try:
        if not there(path):
            raise FileNotFoundError(0, "no such file, and no number or range such as 3-7")
        text = read_received(path, path.resolve().parent, _FILE_BYTES).decode()
        listed = (
            parse_json(text)
            if text.lstrip().startswith("[")
            else re.split(r"[\s,]+", re.sub(r"#.*|(?<=\d)[ \t]+(?=-)|(?<=-)[ \t]+", "", text).strip())
        )
        numbers = compact(expanded([each for each in listed if each != ""]))
        if not numbers:
            raise ValueError("it holds no number")
    except (OSError, RuntimeError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        fix = f"correct the file, or give the numbers: --set {key}=[7]"
        raise HarnessError("recipe-invalid", what, got=got, need=need, fix=fix) from error
    return numbers
