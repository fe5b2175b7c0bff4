"""Checked values of a dataset's metadata: counts, numbers and texts.

Each value is checked for its type and its size. Texts can be a file name or a prompt.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from harness.data.mending import damaged, rewrite
from harness.errors import HarnessError
from harness.received.json import parse_json

# More than any dataset has. A larger count is not a count of frames.
_MOST = 2**48
# The limits of a path template or a feature's name, and of an instruction. Real ones are shorter.
NAME_LETTERS, TASK_LETTERS = 1024, 64 * 1024
# Frames per second: one frame in 17 minutes, and a million frames in a second.
_LEAST_FPS, _MOST_FPS = 1e-3, 1e6


def invalid(
    where: Path | str, what: str, *, got: object = None, need: object = None, fix: str | None = None
) -> HarnessError:
    """The error for metadata that do not have LeRobot's form."""
    return HarnessError(
        "dataset-metadata-invalid",
        f"{where}: {what}",
        got=None if got is None else str(got)[:300],
        need=need,
        fix=fix or rewrite(where),
    )


def parsed(path: Path, raw: bytes, line: int | None = None) -> dict[str, Any]:
    """The mapping in a JSON text.

    Raises: HarnessError "dataset-metadata-invalid", "git-lfs-pointer".
    """
    try:
        value = parse_json(raw)
    except ValueError as error:
        what = f"{path}: not JSON{f' in line {line}' if line else ''}: {str(error)[:300]}"
        refusal = damaged("dataset-metadata-invalid", what, path)
        raise (
            refusal if refusal.code == "git-lfs-pointer" else invalid(path, what.removeprefix(f"{path}: "))
        ) from error
    if not isinstance(value, dict):
        raise invalid(path, "not a mapping", got=type(value).__name__)
    return value


def integer(row: dict[str, Any], key: str, where: str, least: int = 0) -> int:
    """A count.

    pandas turns integers into floats if one of them is missing. So 0.0 is accepted as 0, and a missing value
    is an error.
    """
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MOST:
        raise invalid(where, f"{key} is not a count", got=_shown(value), need=f"an integer ≥ {least}")
    return value


def number(row: dict[str, Any], key: str, where: Path | str) -> float:
    """A time ≥ 0 s, or a frame rate in frames per second."""
    value = row.get(key)
    low, high = (_LEAST_FPS, _MOST_FPS) if key == "fps" else (0.0, 1e15)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not (math.isfinite(value) and low <= value <= high)
    ):
        raise invalid(where, f"{key} is not a number from {low:g} to {high:g}", got=_shown(value))
    return float(value)


def text(
    row: dict[str, Any], key: str, where: Path | str, default: str | None = None, letters: int = NAME_LETTERS
) -> str:
    """A text of at most `letters` letters."""
    value = row.get(key)
    value = default if value is None and default else value
    # A lone surrogate is legal in JSON. Neither a file name nor a prompt can contain it.
    if not isinstance(value, str) or (
        not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value)
    ):
        raise invalid(where, f"{key} is not a text", got=_shown(value))
    if len(value) > letters:
        raise invalid(where, f"{key} is too long", got=f"{len(value):,} letters", need=f"at most {letters:,}")
    return value


def _shown(value: object) -> str:
    """`value` as an error message shows it. A huge integer is shown by its bit count, which is quick."""
    return (
        "nothing"
        if value is None
        else (
            f"an integer of {value.bit_length()} bits"
            if isinstance(value, int) and abs(value) > 2**64
            else repr(value)[:200]
        )
    )
