"""Tables of values: exports of wandb, TensorBoard and MLflow, and others with columns of steps and losses."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.forms import KNOWN, Form, known
from harness.analyse.losses import one_loss

Numbers = npt.NDArray[np.int64]
Row = tuple[bytes, ...]

# wandb's own _step is late: it counts the calls of its logger, which are fewer than the trainer's steps.
STEPS = (
    "step",
    "global_step",
    "train/global_step",
    "trainer/global_step",
    "train/step",
    "training_step",
    "steps",
    "iteration",
    "iter",
    "num_updates",
    "current_steps",
    "time/total_timesteps",
    "_step",
    "epoch",
)
# MLflow and others write one value a row: its name stands in one of the first columns, its run in one of the
# second.
_KEYS, _RUNS = ("key", "metric", "metric_name", "tag"), ("run_id", "run_uuid", "run_name", "run")
# A table of one loss column names in another whose loss a row has.
_SPLITS = ("split", "phase", "mode", "stage", "subset", "set", "partition")
_HELD_OUT = frozenset(
    ["eval", "evaluation", "val", "valid", "validation", "test", "dev", "holdout", "held_out", "heldout"]
)
# Lightning's names of a rate, by its optimizer.
_OF_LIGHTNING = re.compile(r"\Alr-[A-Z]\w{1,40}+(?:/pg1)?+\Z")
_BOUNDS = ("__min", "__max", "__step")
_MOST_COLUMNS = 10_000
# What tables write where a row has no value. `No log` is transformers', before its first training loss.
_NOTHING = frozenset({"", "-", "--", "no log", "n/a", "na"})
_BLANKS = " "
_CLOCKS = re.compile(rb"(?<!\S)(?:\d{1,4}+(?::\d\d){1,2}+|None|nan|#na#)(?!\S)")
# Fewer rows of bare numbers may be anything. Times of this century have more milliseconds.
_FEWEST_ROWS, _MILLISECONDS = 5, 1e12


class Table:
    """A table. `fields` name the values in `columns` of each row; `others` are the runs that are not read.

    `epochs`: a step is an epoch.
    """

    def __init__(self, delimiter: str, shape: _Shape) -> None:
        self._delimiter, self._shape = delimiter, shape
        self.epochs = shape.epochs
        self._read: dict[str, tuple[str, str]] = {}
        self._others = dict.fromkeys(shape.others)

    def remarks(self) -> list[str]:
        """Sentences about the parts of the table that are not in the answer, and about assumptions."""
        told = []
        if self._shape.unnamed:
            told.append(
                f"the file does not say which curve its {self._shape.unnamed} is; it was read as the training"
                " loss"
            )
        if self._others:
            names = ", ".join(repr(name) for name in list(self._others)[:5])
            told.append(
                f"the table holds {1 + len(self._others)} runs; the answer is about the first, not about"
                f" {names}"
            )
        return told

    def rows(self, lines: list[bytes], begin: int) -> Iterator[tuple[Form, Numbers, list[Row]]]:
        """The rows that have a step, grouped by the set of other values that they have."""
        text = [line.decode(errors="replace") for line in lines]
        groups: dict[tuple[str, ...], tuple[list[int], list[Row]]] = {}
        columns = self._shape.columns
        for number, line in enumerate(text, begin):
            cells = _cells(line, self._delimiter)
            held = tuple(i for i, at in enumerate(columns) if at < len(cells) and not _is_nothing(cells[at]))
            if held[:1] != (0,) or len(held) < 2 or not cells[columns[0]].strip()[-1:].isdigit():
                continue
            fields = tuple(self._shape.fields[i] for i in held)
            if self._shape.key is not None:
                named = self._named(cells)
                if named is None:
                    continue
                fields = ("step", named)
            elif self._of_others(cells):
                fields = tuple("held_out" if field == "loss" else field for field in fields)
            ats, rows = groups.setdefault(fields, ([], []))
            ats.append(number)
            rows.append(tuple(cells[columns[i]].strip().encode(errors="replace")[:64] for i in held))
        for fields, (ats, rows) in groups.items():
            yield Form(fields, 0, False, b""), np.array(ats), rows

    def _of_others(self, cells: list[str]) -> bool:
        """True for a row that says that its loss is held out."""
        split = self._shape.split
        return split is not None and split < len(cells) and canonical(cells[split]) in _HELD_OUT

    def _named(self, cells: list[str]) -> str | None:
        """The value that a row holds, if it is the first loss of the first run."""
        key, run = self._shape.key, self._shape.run
        assert key is not None
        if max(key, run or 0) >= len(cells):
            return None
        field = KNOWN.get(canonical(cells[key]))
        if field not in ("loss", "held_out"):
            return None
        whose = (cells[key], cells[run] if run is not None else "")
        kept = self._read.setdefault(field, whose)
        if kept[1] != whose[1]:
            self._others.setdefault(whose[1][:80])
        return field if kept == whose else None


class _Shape(NamedTuple):
    """The columns of a table. `unnamed` is the column whose curve has no name, or empty.

    `key` is the column that names the value of a row, `run` the one that names its run, `split` the one that
    says of which data its loss is.
    """

    fields: tuple[str, ...]
    columns: tuple[int, ...]
    others: list[str]
    unnamed: str = ""
    key: int | None = None
    run: int | None = None
    epochs: bool = False
    split: int | None = None


class _Named(NamedTuple):
    column: int
    name: str
    run: str


def table_of(lines: list[bytes]) -> Table | None:
    """The table whose first line this is. None if the lines are no table with steps and losses."""
    # Commas alone stand between the points of a JSON document, and skorch rules a line below the names.
    filled = [line for line in lines[:40] if line.strip(b" ,\t\r-=+|:")][:10]
    if not filled:
        return None
    if filled[0].removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
        return None
    for begin, line in enumerate(filled):
        table = _table_at(filled[begin:])
        # Remarks, and a spreadsheet's line about its delimiter, stand before the names.
        if table is not None or not line.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"#", b"sep=")):
            return table
    return None


def _table_at(filled: list[bytes]) -> Table | None:
    """The table whose names are in the first of these lines."""
    first = filled[0].decode("utf-8-sig", errors="replace").strip()
    first = first.removeprefix("#").strip()
    for delimiter in (",", "\t", ";", "|", _BLANKS):
        if delimiter not in first and not (delimiter == _BLANKS and "\t" in first):
            continue
        names = [name.strip() for name in _cells(first, delimiter)][:_MOST_COLUMNS]
        # A sentence has blanks too. The line below it is no row of numbers.
        if delimiter == _BLANKS and not _numbers(_untimed(filled[1:2]), len(names)):
            if not _numbers(_untimed(filled[1:2]), 1 + len(names)):
                continue
            # pandas prints its index without a name.
            names = ["", *names]
        found = _columns(names) or _without_names(filled, delimiter)
        if found is not None:
            return Table(delimiter, found)
    return None


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == _BLANKS:
        return line.split()
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _numbers(lines: list[bytes], count: int, delimiter: str = _BLANKS) -> list[list[float]]:
    """The numbers of lines that hold `count` of them each. Empty if one does not."""
    found = []
    for line in lines:
        cells = _cells(line.decode("utf-8-sig", errors="replace").strip(), delimiter)
        try:
            found.append([float(cell) for cell in cells])
        except ValueError:
            return []
        if len(cells) != count:
            return []
    return found


def _untimed(lines: list[bytes]) -> list[bytes]:
    """The lines with a number for each clock, as fastai's `00:10`, and for each value that is not there."""
    return [_CLOCKS.sub(b"0", line) for line in lines]


def _without_names(lines: list[bytes], delimiter: str) -> _Shape | None:
    """The columns of a table of numbers alone, where only a step and a value can be meant.

    These are: step and value; MLflow's time in milliseconds, value and step; TensorBoard's time in seconds,
    step and value.
    """
    rows = _numbers(lines, len(_cells(lines[0].decode(errors="replace"), delimiter)), delimiter)
    if len(rows) < _FEWEST_ROWS or len(rows[0]) not in (2, 3):
        return None
    columns = list(zip(*rows, strict=True))
    rising = [all(a < b and a == int(a) for a, b in pairwise(column)) for column in columns]
    if len(columns) == 2:
        return _Shape(("step", "loss"), (0, 1), [], unnamed="second column") if rising[0] else None
    if columns[0][0] >= _MILLISECONDS and rising[2]:
        return _Shape(("step", "loss"), (2, 1), [], unnamed="second column")
    if columns[0][0] >= _MILLISECONDS / 1000 and rising[1]:
        return _Shape(("step", "loss", "time"), (1, 2, 0), [], unnamed="third column")
    return None


def _columns(names: list[str]) -> _Shape | None:
    lowered = [canonical(name) for name in names]
    steps = next((lowered.index(name) for name in STEPS if name in lowered), None)
    if steps is None:
        return None
    if "value" in lowered:
        value = lowered.index("value")
        if "wall_time" in lowered:
            # TensorBoard's file does not name its curve.
            columns = (steps, value, lowered.index("wall_time"))
            return _Shape(("step", "loss", "time"), columns, [], unnamed="column Value")
        key = next((lowered.index(name) for name in _KEYS if name in lowered), None)
        if key is not None:
            runs = next((lowered.index(name) for name in _RUNS if name in lowered), None)
            return _Shape(("step", "loss"), (steps, value), [], key=key, run=runs)
    named = [
        _Named(column, field, run)
        for column, name in enumerate(names)
        if (parsed := _field(name))
        for field, run in [parsed]
    ]
    if not any(one.name == "loss" for one in named):
        trained, held = one_loss(name.rpartition(" - ")[2].replace(" ", "_") for name in names)
        for column, name in enumerate(names):
            run, _, last = name.rpartition(" - ")
            if last.replace(" ", "_") in (trained, held):
                named.append(_Named(column, "loss" if last.replace(" ", "_") == trained else "held_out", run))
    losses = [one for one in named if one.name == "loss"] or [one for one in named if one.name == "held_out"]
    if not losses:
        return None
    run = losses[0].run
    kept: dict[str, int] = {"step": steps}
    for one in named:
        if one.run == run or not one.run:
            kept.setdefault(one.name, one.column)
    others = sorted({one.run for one in losses if one.run != run})
    split = next((lowered.index(name) for name in _SPLITS if name in lowered), None)
    return _Shape(
        tuple(kept),
        tuple(kept.values()),
        others,
        epochs=lowered[steps] == "epoch",
        split=None if "held_out" in kept else split,
    )


def _field(name: str) -> tuple[str, str] | None:
    """(the value that a column holds, its run): wandb writes `run - loss`."""
    run, _, last = name.rpartition(" - ")
    if last.lower().endswith(_BOUNDS):
        return None
    field = known(canonical(_OF_LIGHTNING.sub("lr", last)))
    return (field, run) if field is not None else None


def _is_nothing(cell: str) -> bool:
    return cell.strip().lower() in _NOTHING


def canonical(name: str) -> str:
    """A name as it is known: `Training Loss` is `training_loss`."""
    return name.strip().lower().replace(" ", "_")
