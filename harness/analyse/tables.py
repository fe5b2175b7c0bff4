"""Tables of values: CSV exports of wandb and TensorBoard, and others with columns of steps and losses."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.forms import KNOWN, Form

Numbers = npt.NDArray[np.int64]
Row = tuple[bytes, ...]

# wandb's own _step is last: it counts the calls of its logger, which are fewer than the trainer's steps.
_STEPS = (
    "step",
    "global_step",
    "train/global_step",
    "trainer/global_step",
    "train/step",
    "training_step",
    "iteration",
    "_step",
)
_BOUNDS = ("__min", "__max", "__step")
_MOST_COLUMNS = 10_000


class Table:
    """A table. `fields` name the values in `columns` of each row; `others` are the runs that are not read."""

    def __init__(
        self,
        delimiter: str,
        fields: tuple[str, ...],
        columns: tuple[int, ...],
        others: list[str],
        unnamed: bool,
    ) -> None:
        self._delimiter, self._fields, self._columns = delimiter, fields, columns
        self._others, self._unnamed = others, unnamed

    def remarks(self) -> list[str]:
        """Sentences about the parts of the table that are not in the answer, and about assumptions."""
        told = []
        if self._unnamed:
            told.append(
                "the file does not say which curve its column Value is; it was read as the training loss"
            )
        if self._others:
            names = ", ".join(repr(name) for name in self._others[:5])
            told.append(
                f"the table holds {1 + len(self._others)} runs; the answer is about the first, not about"
                f" {names}"
            )
        return told

    def rows(self, lines: list[bytes], begin: int) -> Iterator[tuple[Form, Numbers, list[Row]]]:
        """The rows that have a step, grouped by the set of other values that they have."""
        text = [line.decode(errors="replace") for line in lines]
        groups: dict[tuple[int, ...], tuple[list[int], list[Row]]] = {}
        for number, line in enumerate(text, begin):
            cells = _cells(line, self._delimiter)
            held = tuple(i for i, at in enumerate(self._columns) if at < len(cells) and cells[at].strip())
            if held[:1] != (0,) or len(held) < 2 or not cells[self._columns[0]].strip()[-1:].isdigit():
                continue
            ats, rows = groups.setdefault(held, ([], []))
            ats.append(number)
            rows.append(tuple(cells[self._columns[i]].strip().encode(errors="replace")[:64] for i in held))
        for held, (ats, rows) in groups.items():
            yield Form(tuple(self._fields[i] for i in held), 0, False, b""), np.array(ats), rows


class _Named(NamedTuple):
    column: int
    name: str
    run: str


def table_of(lines: list[bytes]) -> Table | None:
    """The table whose first line this is. None if the lines are no table with steps and losses."""
    first = next((line for line in lines if line.strip()), b"").decode("utf-8-sig", errors="replace").strip()
    for delimiter in (",", "\t", ";"):
        if delimiter not in first or first.startswith(("{", "[")):
            continue
        names = [name.strip() for name in _cells(first, delimiter)][:_MOST_COLUMNS]
        found = _columns(names)
        if found is not None:
            fields, columns, others, unnamed = found
            return Table(delimiter, fields, columns, others, unnamed)
    return None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _columns(names: list[str]) -> tuple[tuple[str, ...], tuple[int, ...], list[str], bool] | None:
    lowered = [name.lower() for name in names]
    steps = next((lowered.index(name) for name in _STEPS if name in lowered), None)
    if steps is None:
        return None
    if "value" in lowered and "wall time" in lowered:
        # TensorBoard's file does not name its curve.
        columns = (steps, lowered.index("value"), lowered.index("wall time"))
        return ("step", "loss", "time"), columns, [], True
    named = [
        _Named(column, field, run)
        for column, name in enumerate(names)
        if (parsed := _field(name))
        for field, run in [parsed]
    ]
    losses = [one for one in named if one.name == "loss"] or [one for one in named if one.name == "held_out"]
    if not losses:
        return None
    run = losses[0].run
    kept: dict[str, int] = {"step": steps}
    for one in named:
        if one.run == run or not one.run:
            kept.setdefault(one.name, one.column)
    others = sorted({one.run for one in losses if one.run != run})
    return tuple(kept), tuple(kept.values()), others, False


def _field(name: str) -> tuple[str, str] | None:
    """(the value that a column holds, its run): wandb writes `run - loss`."""
    run, _, last = name.rpartition(" - ")
    if last.lower().endswith(_BOUNDS):
        return None
    field = KNOWN.get(last.strip().lower())
    return (field, run) if field is not None else None
