"""Damage to files as disks, networks and people cause it. Each mutation changes one file in one way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def damage(directory: Path, chance: random.Random) -> str:
    """What was done, in words, to one file below `directory`."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    victim = chance.choice(files)
    return f"{damage_file(victim, chance, others=files)} of {victim.relative_to(directory)}"


def damage_file(victim: Path, chance: random.Random, *, others: list[Path] | None = None) -> str:
    """What was done, in words, to a file; `others` are those that it may be swapped with."""
    data = bytearray(victim.read_bytes())
    kinds = [
        "flip a bit",
        "flip a bit",
        "change a byte",
        "zero a block",
        "cut short",
        "lengthen",
        "empty",
        "remove",
    ]
    kind = chance.choice([*kinds, *(["swap with another"] if others else [])])
    at = chance.randrange(max(len(data), 1))
    if kind == "flip a bit" and data:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "change a byte" and data:
        data[at] = (data[at] + chance.randrange(1, 256)) % 256
    elif kind == "zero a block":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "cut short":
        del data[at:]
    elif kind == "lengthen":
        data += chance.randbytes(chance.randrange(1, 64))
    elif kind == "empty":
        data.clear()
    elif kind == "swap with another":
        other = chance.choice(others or [victim])
        there = other.read_bytes()
        other.write_bytes(bytes(data))
        data = bytearray(there)
    if kind == "remove":
        victim.unlink()
    else:
        victim.write_bytes(bytes(data))
    return f"{kind} at {at}"


# What a person or another version may have put where something else is expected.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "\u0000",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": 1},
    ["x"] * 3,
)


def damage_value(file: Path, chance: random.Random) -> str:
    """What was done, in words, to one value of a JSON file, or of one line of a JSONL file, which stays
    JSON.
    """
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = chance.randrange(len(lines))
    body = json.loads(lines[number])
    places = list(_places(body, []))
    path = chance.choice(places)
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    kind = chance.choice(("strange", "strange", "remove", "add", "number"))
    old = holder[path[-1]]
    if kind == "remove":
        del holder[path[-1]]
    elif kind == "add" and isinstance(holder, dict):
        holder[chance.choice(("x", "schema_version", "step", str(path[-1]).upper()))] = chance.choice(STRANGE)
    elif kind == "number" and isinstance(old, int | float):
        holder[path[-1]] = chance.choice((-old, old * 1e6, old + 1, old / 3, str(old)))
    else:
        holder[path[-1]] = chance.choice(STRANGE)
    lines[number] = json.dumps(body)
    file.write_text("\n".join(lines) + "\n")
    return f"{kind} at {'.'.join(map(str, path))} of {file.name}"


def _places(body: Any, path: list[Any]) -> Any:
    """The path of every value below `body`."""
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in items:
        yield [*path, key]
        yield from _places(value, [*path, key])
