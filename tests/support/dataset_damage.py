"""Damage to datasets and statistics beyond single bytes.

Examples: columns, special files, files of another kind, values of another size.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.artifacts import NormStats
from harness.data.stats import to_openpi_json
from tests.support import lerobot_writer as writer
from tests.support.mutation import STRANGE, damage, damage_value

FORMS = [
    ("v2.0", "parquet"),
    ("v2.1", "parquet"),
    ("v2.1", "files"),
    ("v2.1", "paths"),
    ("v2.1", "video"),
    ("v3.0", "parquet"),
    ("v3.0", "video"),
]
_LARGE = (0, -1, 1, 2**31, 2**47, 2**63 - 1, 1e300, float("nan"), float("inf"), 0.5, None)


def write_forms(place: Path) -> list[Path]:
    """A small dataset of every form."""
    return [
        writer.write(place / f"{version}-{images}", version=version, images=images, lengths=(3, 2))
        for version, images in FORMS
    ]


def damage_dataset(root: Path, chance: random.Random) -> str:
    """What was done, in words, to a dataset: one to three times."""
    kinds: list[Callable[[Path, random.Random], str]] = [
        damage,
        damage,
        _value,
        _value,
        _column,
        _cell,
        _special,
        _footer,
        _repeat,
    ]
    return "; ".join(chance.choice(kinds)(root, chance) for _ in range(chance.choice((1, 1, 2, 3))))


def _files(root: Path, *endings: str) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name.endswith(endings or ("",))
    )


def _value(root: Path, chance: random.Random) -> str:
    file = chance.choice(_files(root, ".json", ".jsonl") or [None])
    if file is None:
        return "nothing"
    try:
        return damage_value(file, chance)
    except (ValueError, IndexError, TypeError):
        return damage(root, chance)


def _column(root: Path, chance: random.Random) -> str:
    """A column of a table dropped, renamed, doubled, or of another type."""
    path, table = _table(root, chance)
    if table is None:
        return damage(root, chance)
    name = chance.choice(table.column_names)
    at = table.column_names.index(name)
    kind = chance.choice(
        ("drop", "rename", "double", "texts", "floats", "lists", "dictionary", "nulls", "structs")
    )
    rows = table.num_rows
    others: dict[str, Callable[[], Any]] = {
        "texts": lambda: pa.array([f"{n}" * chance.randrange(3) for n in range(rows)]),
        "floats": lambda: pa.array([chance.choice((0.0, 1.5, float("nan"))) for _ in range(rows)]),
        "lists": lambda: pa.array([[0.5] * chance.randrange(4) for _ in range(rows)]),
        "dictionary": lambda: pa.array(["x"] * rows).dictionary_encode(),
        "nulls": lambda: pa.nulls(rows),
        "structs": lambda: pa.array([{"bytes": b"x", "path": None} for _ in range(rows)]),
    }
    if kind == "drop":
        table = table.drop_columns(name)
    elif kind == "rename":
        table = table.rename_columns([f"{each}x" if each == name else each for each in table.column_names])
    elif kind == "double":
        table = table.append_column(name, table.column(name))
    else:
        table = table.set_column(at, name, others[kind]())
    pq.write_table(table, path)
    return f"{kind} of column {name} of {path.name}"


def _cell(root: Path, chance: random.Random) -> str:
    """One number of a table is another."""
    path, table = _table(root, chance)
    numbers = (
        []
        if table is None
        else [name for name in table.column_names if not pa.types.is_nested(table.schema.field(name).type)]
    )
    if table is None or not numbers or not table.num_rows:
        return damage(root, chance)
    name, row, value = (
        chance.choice(numbers),
        chance.randrange(table.num_rows),
        chance.choice((*_LARGE, "", "x" * 100_000)),
    )
    cells = table.column(name).to_pylist()
    cells[row] = value
    try:
        column = pa.array(cells)
    except (pa.ArrowException, OverflowError):
        column = pa.array([str(cell) for cell in cells])
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
    return f"{name}[{row}] = {str(value)[:20]} in {path.name}"


def _table(root: Path, chance: random.Random) -> tuple[Path, Any]:
    path = chance.choice(_files(root, ".parquet") or [root])
    try:
        return path, pq.read_table(path)
    except (pa.ArrowException, OSError):
        return path, None


def _special(root: Path, chance: random.Random) -> str:
    """A file becomes a FIFO, a link, a device, a directory; or a directory a file."""
    path = chance.choice(_files(root) or [root / "meta/x"])
    path.unlink(missing_ok=True)
    kind = chance.choice(("fifo", "out", "device", "loop", "nowhere", "directory", "parent"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir(parents=True)
    elif kind == "parent":
        shutil.rmtree(path.parent)
        path.parent.write_bytes(b"x")
    else:
        path.symlink_to(
            {"out": "/etc/passwd", "device": "/dev/zero", "loop": path.name, "nowhere": "nothing"}[kind]
        )
    return f"{kind} for {path.relative_to(root)}"


def _footer(root: Path, chance: random.Random) -> str:
    """Bytes of what says where all else is: the end of a parquet file, the header of an mp4."""
    path = chance.choice(_files(root, ".parquet", ".mp4") or [root])
    if path == root:
        return "nothing"
    content = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 9)):
        if content:
            content[chance.randrange(max(0, len(content) - 1500), len(content))] = chance.choice(
                (0, 1, 127, 128, 255, chance.randrange(256))
            )
    path.write_bytes(content)
    return f"bytes at the end of {path.name}"


def _repeat(root: Path, chance: random.Random) -> str:
    """A file is there many times over, in itself."""
    path = chance.choice(_files(root) or [root])
    if path == root:
        return "nothing"
    path.write_bytes(path.read_bytes() * chance.choice((2, 3, 50)))
    return f"{path.name} repeated"


def norm_forms(stats: NormStats) -> list[Any]:
    """Statistics in every form that people have."""
    core = json.loads(to_openpi_json(stats))["norm_stats"]
    lerobot = {
        name: one | {"count": [9], "max": one["q99"], "min": one["q01"]}
        for name, one in (("observation.state", core["state"]), ("action", core["actions"]))
    }
    padded = {
        key: {name: vector + [0.0] * (32 - len(vector)) for name, vector in one.items()}
        for key, one in core.items()
    }
    return [
        {"norm_stats": core},
        core,
        lerobot | {"image": {"mean": [[[0.5]]], "count": [9]}},
        {"norm_stats": padded},
    ]


def damage_norm_stats(file: Path, chance: random.Random) -> str:
    """What was done, in words, to a file of statistics."""
    kind = chance.choice(("value", "value", "value", "bytes", "vector", "special", "large"))
    if kind == "value":
        return damage_value(file, chance)
    if kind == "special":
        file.unlink()
        chance.choice(
            (
                lambda: os.mkfifo(file),
                lambda: file.symlink_to("/dev/zero"),
                file.mkdir,
                lambda: file.symlink_to(file.name),
            )
        )()
        return "a special file"
    if kind == "large":
        file.write_text(
            chance.choice(
                (
                    "[" * 200_000,
                    '{"a":' * 50_000,
                    "1" * 1_000_000,
                    '"' + "x" * 5_000_000 + '"',
                    '{"norm_stats": ' + "9" * 99 + "}",
                )
            )
        )
        return "something large"
    if kind == "bytes":
        return damage(file.parent, chance)
    body = json.loads(file.read_text())
    inner = body.get("norm_stats", body)
    vectors = inner[chance.choice(list(inner))]
    if isinstance(vectors, dict) and vectors:
        vectors[chance.choice(list(vectors))] = chance.choice(
            (*STRANGE, [1e400], [None] * 7, [[1.0]] * 7, list(range(8)), [1.0] * 100_000, {"0": 1.0})
        )
    file.write_text(json.dumps(body))
    return "another vector"
