"""Parses JSON from outside, limited in depth and in the size of numbers, with valid characters only.

Every failure is a ValueError.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from harness.received.files import read_received

DEEPEST = 100
# More digits than any count of bytes, nanoseconds or parameters has: 2**63 has 19.
_MOST_DIGITS = 20


def parse_json(data: bytes | str, *, finite: bool = False, unique: bool = False) -> Any:
    """The value of a JSON text. With `finite`, NaN and infinity are refused; with `unique`, a repeated key.

    Raises: ValueError, also for more than 100 levels, for integers of more than 20 digits, and for lone
    surrogates.
    """
    if data and set(data) <= {0, "\0"}:
        raise ValueError("it holds zeros alone, as a file does that a power cut took")
    try:
        value = json.loads(data, parse_int=_bounded, object_pairs_hook=_unique if unique else None)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from error
    check_json(value, finite=finite)
    return value


def read_json(path: Path, root: Path, limit_bytes: int, *, finite: bool = False, unique: bool = False) -> Any:
    """The JSON file `path` below `root`, as `parse_json`.

    Raises: ValueError as `parse_json`; UnsafeFile and OSError as `read_received`.
    """
    return parse_json(read_received(path, root, limit_bytes), finite=finite, unique=unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:200]!r} twice")
        found[name] = value
    return found


def _bounded(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def check_json(value: Any, *, finite: bool = False) -> None:
    """Checks the depth, the characters and the numbers of a value of JSON's types.

    Refuses more than 100 levels, lone surrogates, integers of more than 20 digits, and with `finite` numbers
    that are not finite.

    Raises: ValueError.
    """
    level = [value]
    for _ in range(DEEPEST + 1):
        children: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                # A lone surrogate cannot be encoded: UnicodeEncodeError is a ValueError.
                "".join(each).encode()
                children += each.values()
            elif isinstance(each, list):
                children += each
            elif isinstance(each, str):
                each.encode()
            elif isinstance(each, int) and abs(each) >= 10**_MOST_DIGITS:
                raise ValueError(f"an integer of more than {_MOST_DIGITS} digits")
            elif finite and isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"a number that is not finite: {each}")
        level = children
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} levels deep")
