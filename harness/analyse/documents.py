"""Whole documents that hold a curve, with each of its records on a line of its own as JSON.

These are: columns in JSON (`{"step": [...], "loss": [...]}`, as people and Keras save a history, and pandas),
lists of records within an object, single values with their names (MLflow, Comet), points x and y (ClearML,
Plotly), tables of a page (the progress of transformers' Trainer), and notebooks with any of these.
"""

from __future__ import annotations

import codecs
import html
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from harness.analyse.forms import KNOWN, known
from harness.analyse.tables import STEPS, canonical
from harness.received.json import parse_json
from harness.units import MIB

# A larger document stays as it is. Its values would take many times its size in memory.
_MOST_BYTES = 32 * MIB
_CELL = re.compile(r"<t[hd](?=[\s>])", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,300}+>")
_OBJECT = re.compile(rb"\{\s{0,200}+\"")
_NAMES, _VALUES = ("key", "metric", "metricName", "name", "tag"), ("value", "metricValue")
# transformers' mean over the whole run, at its end.
_SUMMARY = "train_runtime"
Line = dict[str, float | None]


def records_on_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A document's records, a line each. Everything else unchanged."""
    first = next(pieces, b"")
    begin = first.removeprefix(codecs.BOM_UTF8).lstrip()
    page = b"<table" in begin and b"<td" in begin and not begin.startswith((b"{", b"["))
    if not page and not _is_object(begin):
        yield first
        yield from pieces
        return
    held = [first]
    while sum(map(len, held)) <= _MOST_BYTES and (piece := next(pieces, None)) is not None:
        held.append(piece)
    whole = b"".join(held)
    lines: list[str] = []
    if len(whole) <= _MOST_BYTES:
        text = whole.decode("utf-8-sig", errors="replace")
        lines = list(_of_page(text) if page else _of_json(text))
    yield from (
        [("\n".join(lines) + "\n").encode(errors="replace")] if lines else itertools.chain(held, pieces)
    )


def _is_object(begin: bytes) -> bool:
    """True unless the text is no object of JSON, or one whose first line is a record by itself."""
    if not _OBJECT.match(begin):
        return False
    line, _, rest = begin.partition(b"\n")
    if not rest.strip():
        return True
    try:
        parse_json(line)
    except ValueError:
        return True
    return False


def _of_json(text: str) -> Iterator[str]:
    try:
        document = parse_json(text)
    except ValueError:
        return
    if not isinstance(document, dict):
        return
    if isinstance(document.get("cells"), list):
        yield from _of_notebook(document["cells"])
        return
    # A record alone is a line already.
    if any(isinstance(value, (dict, list)) for value in document.values()):
        yield from _lines(_curve(document, ""))


def _lines(records: Iterator[Line]) -> Iterator[str]:
    return (json.dumps(record) for record in records)


def _curve(value: Any, path: str) -> Iterator[Line]:
    """The records in a value of JSON. `path` are the names that lead to it."""
    if isinstance(value, dict):
        columns = _columns(value, path)
        if columns:
            yield from _rows(columns)
            return
        for name, below in value.items():
            yield from _curve(below, f"{path}/{name}")
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        records = [record for one in value if (record := _record(one))]
        if records:
            yield from records
            return
        for one in value:
            yield from _curve(one, path)


def _columns(value: dict[str, Any], path: str) -> dict[str, list[Any]]:
    """The columns of a table, by name: a loss, and what is as long. Empty if the value is none."""
    names, rows = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows):
        value = {
            str(name): [row[i] if i < len(row) else None for row in rows] for i, name in enumerate(names)
        }
    x, y = value.get("x"), value.get("y")
    if isinstance(x, list) and isinstance(y, list) and "loss" in path.lower():
        held = any(word in path.lower() for word in ("val", "test"))
        value = {"step": x, "eval_loss" if held else "loss": y}
    lists: dict[str, list[Any]] = {}
    for name, column in value.items():
        if isinstance(column, (dict, list)) and len(column) > 1:
            lists.setdefault(canonical(name), list(column.values() if isinstance(column, dict) else column))
    losses = [name for name in lists if KNOWN.get(name) in ("loss", "held_out")]
    if not losses or not any(_number(cell) is not None for cell in lists[losses[0]]):
        return {}
    return {name: column for name, column in lists.items() if len(column) == len(lists[losses[0]])}


def _rows(columns: dict[str, list[Any]]) -> Iterator[Line]:
    name = next((name for name in columns if KNOWN.get(name) == "loss"), "")
    there = [_number(cell) is not None for cell in columns.get(name, [])]
    # pandas writes null for NaN and for a row that has no loss. Where each row has one up to some row, the
    # rest is lost.
    lost = there.count(True) if there == sorted(there, reverse=True) else len(there)
    for index, cells in enumerate(zip(*columns.values(), strict=True)):
        record = _record(dict(zip(columns, cells, strict=True)))
        if name and index >= lost and len(cells) > 1:
            record = {**_record({**dict(zip(columns, cells, strict=True)), name: 0.0}), name: None}
        if record:
            yield record


def _record(value: dict[str, Any]) -> Line:
    """The step, the losses and the other values of one record. Empty without a loss."""
    if value.get(_SUMMARY) is not None:
        return {}
    name = next((value[name] for name in _NAMES if isinstance(value.get(name), str)), None)
    single = next((value[name] for name in _VALUES if name in value), None)
    if name is not None and single is not None:
        value = {name: single, **{key: value[key] for key in STEPS if key in value}}
    cells = {canonical(key): number for key, cell in value.items() if (number := _number(cell)) is not None}
    step = next((name for name in STEPS if name in cells), None)
    kept: Line = {key: number for key, number in cells.items() if known(key)}
    if not any(known(key) in ("loss", "held_out") for key in kept):
        return {}
    if step is None:
        return kept
    number = cells[step]
    counted = int(number) if number == number // 1 else number
    return {"epoch" if step == "epoch" else "step": counted, **kept}


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None


def _of_notebook(cells: list[Any]) -> Iterator[str]:
    """What the cells have printed, and the tables that they show."""
    outputs = [
        output
        for cell in cells
        if isinstance(cell, dict) and isinstance(cell.get("outputs"), list)
        for output in cell["outputs"]
        if isinstance(output, dict)
    ]
    for output in outputs:
        data = output.get("data")
        shown = data if isinstance(data, dict) else {}
        lines = list(_of_page(_joined(shown.get("text/html"))))
        yield from lines or (_joined(output.get("text")) or _joined(shown.get("text/plain"))).splitlines()


def _joined(text: Any) -> str:
    if isinstance(text, list):
        return "".join(part for part in text if isinstance(part, str))
    return text if isinstance(text, str) else ""


def _of_page(text: str) -> Iterator[str]:
    """The rows of a page's tables, by the names in the row above that names a loss."""
    names: list[str] = []
    for row in text.split("<tr")[1:]:
        cells = [
            html.unescape(_TAG.sub("", cell.partition(">")[2].partition("</t")[0])).strip()
            for cell in _CELL.split(row.partition("</tr")[0])[1:]
        ]
        if any(canonical(cell) in KNOWN for cell in cells):
            names = cells
        elif len(cells) == len(names):
            record = _record(dict(zip(names, cells, strict=True)))
            yield from [json.dumps(record)] if record else []
