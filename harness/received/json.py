"""JSON from outside: bounded in depth and in the size of its numbers. Every failure is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.received.files import read_received

DEEPEST = 100
# More digits than any count of bytes, nanoseconds or parameters has: 2**63 has 19.
_MOST_DIGITS = 20


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises: ValueError, also for more than 100 levels and for integers of more than 20 digits.
    """
    try:
        value = json.loads(data, parse_int=_bounded)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from error
    _check_depth(value)
    return value


def read_json(path: Path, root: Path, limit_bytes: int) -> Any:
    """The JSON file `path` below `root`.

    Raises: ValueError as `parse_json`; UnsafeFile and OSError as `read_received`.
    """
    return parse_json(read_received(path, root, limit_bytes))


def _bounded(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} levels deep")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, (dict, list))]
    return [child for child in value if isinstance(child, (dict, list))] if isinstance(value, list) else []
