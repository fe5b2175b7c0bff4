"""Texts (JSON, YAML, logs) in which a stranger replaced one part by another.

Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

from benchmarks.strangers_values import ATOMS, DATES, NUMBERS, RAW_NUMBERS, Hostile, dumps
from harness.received.yaml import parse_yaml

_SENSITIVE = {
    "source",
    "dataset",
    "path",
    "asset_id",
    "tokenizer",
    "revision",
    "base",
    "files",
    "weights",
    "device",
    "layout",
    "name",
    "url",
    "image",
    "recipe",
    "step",
    "steps",
    "run",
}


def mutate_json(data: bytes, rng: random.Random, hostile: Hostile) -> bytes:
    """The JSON text with one to three of its parts in another form; as text, where it is no JSON."""
    try:
        value = json.loads(data)
    except ValueError:
        return mutate_text(data, rng, hostile)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = _change(value, rng, hostile)
    text = dumps(value)
    if rng.random() < 0.05 and '"' in text:
        # A key twice: readers differ about which one counts.
        text = text.replace("{", '{"schema": 1e400, ', 1)
    return text.encode(errors="surrogatepass")


def _change(value: Any, rng: random.Random, hostile: Hostile) -> Any:
    holders = _holders(value)
    if not holders:
        return hostile.value(rng)
    named = [(holder, key) for holder, key in holders if str(key) in _SENSITIVE]
    if named and rng.random() < 0.2:
        holder, key = rng.choice(named)
        holder[key] = rng.choice(
            [
                hostile.address(rng),
                {"source": hostile.address(rng), "files": {hostile.address(rng): {"sha256": "0"}}},
            ]
        )
        return value
    weights = [20 if str(key) in _SENSITIVE else 1 for _, key in holders]
    holder, key = rng.choices(holders, weights)[0]
    action = rng.randrange(12)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[hostile.text(rng)] = holder.pop(key)
    elif action == 2:
        other, its_key = rng.choice(holders)
        if its_key in other if isinstance(other, dict) else its_key < len(other):
            holder[key], other[its_key] = copy.deepcopy(other[its_key]), copy.deepcopy(holder[key])
    elif action == 3 and isinstance(holder, dict):
        holder[hostile.text(rng)] = hostile.value(rng)
    elif action == 4:
        holder[key] = [holder[key]] * rng.choice([0, 2, 5000])
    else:
        holder[key] = hostile.value(rng)
    return value


def _holders(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every part of a JSON value."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        item = todo.pop()
        pairs = (
            list(item.items())
            if isinstance(item, dict)
            else list(enumerate(item))
            if isinstance(item, list)
            else []
        )
        found += [(item, key) for key, _ in pairs]
        todo += [child for _, child in pairs]
    return found


def mutate_lines(data: bytes, rng: random.Random, hostile: Hostile) -> bytes:
    """A file with one JSON value a line, some of the lines changed."""
    lines = data.splitlines() or [b"{}"]
    for _ in range(rng.choice([1, 2, 4])):
        at = rng.randrange(len(lines))
        action = rng.randrange(5)
        if action == 0:
            lines.insert(
                at,
                rng.choice(
                    [
                        b"",
                        b"{",
                        b"[]",
                        b"null",
                        b"\xff\xfe",
                        b"1e400",
                        hostile.text(rng).encode(errors="surrogatepass"),
                    ]
                ),
            )
        elif action == 1:
            lines[at:at] = [lines[at]] * 2000
        else:
            lines[at] = mutate_json(lines[at], rng, hostile)
    return b"\n".join(lines) + rng.choice([b"\n", b""])


def mutate_yaml(data: bytes, rng: random.Random, hostile: Hostile) -> bytes:
    """A recipe with YAML's own tricks, or as JSON (which is YAML too) with hostile values."""
    if rng.random() < 0.5:
        # Of a recipe that is spoiled already the values may be a bomb.
        with contextlib.suppress(ValueError):
            return mutate_json(json.dumps(parse_yaml(data.decode())).encode(), rng, hostile)
    text = data.decode()
    tricks: list[Callable[[], str]] = [
        lambda: text + f"x: {rng.choice(DATES)}\n",
        lambda: _merge_bomb(rng.choice([8, 14, 22])) + text,
        lambda: _alias_bomb(9) + text,
        lambda: text + "x: &a [*a]\n",
        lambda: text + "? [1, 2]\n: x\n? {a: b}\n: y\n",
        lambda: (
            text
            + rng.choice(
                [
                    "x: !!python/object/apply:os.system [id]\n",
                    "x: !!binary '///'\n",
                    "x: !!set {a, b}\n",
                    "x: !!omap [a: 1]\n",
                    "x: !nope 1\n",
                ]
            )
        ),
        lambda: text + "x: " + "[" * rng.choice([50, 500, 20_000]) + "\n",
        lambda: text + text,
        lambda: text.replace("  ", "\t"),
        lambda: text.replace(":", ": |", 1),
        lambda: "---\n" + text + "---\n" + text,
        lambda: "x: " + "1:" * 5000 + "1\n" + text,
        lambda: "x: " + "9" * 5000 + "\n" + text,
        lambda: _other_value(text, rng, hostile),
    ]
    return rng.choice([*tricks, tricks[-1], tricks[-1]])().encode(
        rng.choice(["utf-8"] * 9 + ["utf-16"]), errors="surrogatepass"
    )


def _other_value(text: str, rng: random.Random, hostile: Hostile) -> str:
    lines = text.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if ": " in line])
    value = hostile.value(rng)
    lines[at] = (
        lines[at].split(": ")[0]
        + ": "
        + (value if isinstance(value, str) and not value.startswith("@@") else dumps(value))
    )
    return "\n".join(lines) + "\n"


def _merge_bomb(levels: int) -> str:
    rows = ["a0: &a0 {k0: 1, k1: 2}"] + [
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}" for i in range(1, levels)
    ]
    return "\n".join(rows) + "\n"


def _alias_bomb(levels: int) -> str:
    rows = ["b0: &b0 [x, x]"] + [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(rows) + "\n"


def mutate_text(data: bytes, rng: random.Random, hostile: Hostile) -> bytes:
    """A log with one to three hostile parts: numbers, long runs of one word, controls, other encodings."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        data = _change_text(data, rng, hostile)
    return data


def _change_text(data: bytes, rng: random.Random, hostile: Hostile) -> bytes:
    at = rng.randrange(len(data) + 1)
    return rng.choice(_TEXT_CHANGES)(data, at, rng, hostile)


def _number(data: bytes, at: int, rng: random.Random, hostile: Hostile) -> bytes:
    numbers = list(re.finditer(rb"\d[\d.]*", data[at : at + 4000]))
    if not numbers:
        return data
    found = rng.choice(numbers)
    new = str(
        rng.choice([*NUMBERS, *RAW_NUMBERS, "1.1.1", "-", "inf", "1K", "1M", "1e5K", hostile.text(rng)])
    )
    return data[: at + found.start()] + new.encode(errors="surrogatepass") + data[at + found.end() :]


def _long_run(data: bytes, at: int, rng: random.Random, _: Hostile) -> bytes:
    word = rng.choice(ATOMS) + (rng.choice(ATOMS) if rng.random() < 0.5 else "")
    length: int = rng.choice([1000, 50_000, 1_000_000])
    return data[:at] + (word * (length // len(word))).encode() + data[at:]


def _insert(data: bytes, at: int, rng: random.Random, hostile: Hostile) -> bytes:
    return data[:at] + hostile.text(rng).encode(errors="surrogatepass") + data[at:]


def _shuffle(data: bytes, _: int, rng: random.Random, __: Hostile) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def _line_ends(data: bytes, _: int, rng: random.Random, __: Hostile) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\x00\n", b"\x1b[0m\n"]))


def _encoding(data: bytes, _: int, rng: random.Random, __: Hostile) -> bytes:
    return data.decode(errors="replace").encode(
        rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"]), errors="replace"
    )


def _noise(data: bytes, _: int, rng: random.Random, __: Hostile) -> bytes:
    return bytes(byte if rng.random() > 0.003 else rng.randrange(256) for byte in data[:200_000])


_TEXT_CHANGES: list[Callable[[bytes, int, random.Random, Hostile], bytes]] = [
    _number,
    _number,
    _number,
    _long_run,
    _long_run,
    _insert,
    _shuffle,
    _line_ends,
    _encoding,
    _noise,
]
