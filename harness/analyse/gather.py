"""Columns from the values of lines of several forms: training records, held-out losses, impossible steps.

Axes: N records.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.forms import COLUMNS, Form
from harness.analyse.numbers import ABSENT, clock_seconds, counts, numbers, over_midnight
from harness.analyse.rounded import Rebuilt, rebuilt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Row = tuple[bytes, ...]

# From here on, neighbouring steps are the same number for a float and for the report's page.
MOST_STEP = 2.0**53
# Columns with a mask: 1 where a line has the value, even NaN.
THERE = ("loss", "grad_norm", "param_norm")


class Gathered(NamedTuple):
    """The values of a log as columns.

    `columns` [N] of the training records are in the order of the file, NaN where a line has no value;
    `numbers` is [N]. `has_…` is 1 where a line names that value, even NaN. `held_out` is (steps, losses) of
    the second curve. `states` of a progress bar were left out because the log has records beside them.
    `impossible` records have a step that no step can be.
    """

    columns: dict[str, Floats]
    numbers: Numbers
    held_out: tuple[Floats, Floats]
    states: int
    impossible: int
    rebuilt: Rebuilt | None
    decimal_commas: bool


class Values:
    """Rows of every form, converted to numbers in chunks.

    Millions of small objects would cost more memory than their content.
    """

    def __init__(self, chunk: int) -> None:
        self._chunk, self._waiting = chunk, 0
        self._rows: dict[tuple[object, ...], tuple[Form, list[Numbers], list[Row]]] = {}
        self.parts: list[tuple[Form, Numbers, dict[str, Floats]]] = []
        self.count = 0
        self.decimals: int | None = None
        self.decimal_commas = False

    def keep(self, form: Form, numbers: Numbers, rows: list[Row]) -> None:
        """Takes in rows. `numbers` are their line numbers."""
        self.count += len(rows)
        self._waiting += len(rows)
        _, at, kept = self._rows.setdefault((form.fields, form.offset, form.bar), (form, [], []))
        at.append(numbers)
        kept += rows
        if self.decimals is None or len(rows) == 1:
            # One row would not do: a table writes 0.5 between values of many digits.
            for row in rows[:: 1 + len(rows) // 100]:
                self._note_digits(form, row)
        if self._waiting >= self._chunk:
            self.convert()

    def convert(self) -> None:
        """Converts the waiting rows to numbers."""
        for form, at, rows in self._rows.values():
            raw = dict(zip(form.fields, zip(*rows, strict=True), strict=True))
            self.parts.append((form, np.concatenate(at), self._columns(form, raw)))
        self._rows, self._waiting = {}, 0

    def _columns(self, form: Form, raw: dict[str, tuple[bytes, ...]]) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for name, cells in raw.items():
            if name in ("step", "samples"):
                found[name], found[f"{name}_unit"] = counts(cells)
            elif name == "clock":
                found["time"], dated = clock_seconds(raw["date"], cells)
                found["dated"] = dated.astype(float)
            elif name != "date":
                found[name], commas = numbers(cells)
                self.decimal_commas |= commas
                if name in THERE:
                    found[f"has_{name}"] = np.array([cell not in ABSENT for cell in cells], float)
        found["step"] = found["step"] - form.offset
        if "step_min" in found and "step_s" in found:
            found["step_s"] = found["step_s"] + 60 * found.pop("step_min")
        return found

    def _note_digits(self, form: Form, row: Row) -> None:
        if "loss" not in form.fields:
            return
        loss = row[form.fields.index("loss")].replace(b",", b".")
        digits = 9 if b"e" in loss.lower() else len(loss.partition(b".")[2])
        self.decimals = max(digits, self.decimals or 0)


def gathered(values: Values) -> Gathered:
    """All values that were read, in the order of the file."""
    values.convert()
    parts = values.parts
    is_log = any("loss" in found and not form.bar for form, _, found in parts)
    train = [(at, found) for form, at, found in parts if "loss" in found and not (form.bar and is_log)]
    states = sum(len(at) for form, at, found in parts if form.bar and is_log and "loss" in found)
    columns, numbers = _together(train)
    columns["time"] = _times(columns)
    how = rebuilt(columns["step"], columns["step_unit"], columns["samples"], columns["samples_unit"])
    if how is not None:
        columns["step"] = how.steps
    # A record whose step cannot be read is as impossible as one with a negative step.
    possible = (
        (columns["step"] >= 0)
        & (columns["step"] < MOST_STEP)
        & (columns["step"] == np.floor(columns["step"]))
    )
    held_out = _held_out(
        [(at, _first_drawn(found) if form.bar else found) for form, at, found in parts if "held_out" in found]
    )
    # A table that was exported as JSON has null in the rows of its other curve.
    keep = possible & ~((columns["has_loss"] == 0) & np.isfinite(columns["held_out"]))
    keep &= ~_estimated(columns["step"], np.isfinite(columns["held_out"]))
    if not is_log and len(numbers):
        # A bar draws one state many times. The last one counts.
        keep &= np.append(np.diff(columns["step"]) != 0, True)
    kept = {
        name: column[keep] for name, column in columns.items() if name in COLUMNS or name.startswith("has_")
    }
    return Gathered(kept, numbers[keep], held_out, states, int((~possible).sum()), how, values.decimal_commas)


def _estimated(steps: Floats, evaluates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[N]: True for a line with a held-out loss beside a line of the same step without one.

    Its training loss is another estimate, as nanoGPT's `step 100: train loss 1.0, val loss 1.1` before
    `iter 100: loss 1.2`.
    """
    beside = np.diff(steps) == 0
    other = np.zeros(len(steps), bool)
    other[:-1] |= beside & ~evaluates[1:]
    other[1:] |= beside & ~evaluates[:-1]
    return np.asarray(evaluates & other)


def _first_drawn(found: dict[str, Floats]) -> dict[str, Floats]:
    """The same columns of a bar, which repeats its newest held-out loss: each loss only where it is new."""
    losses = found["held_out"]
    new = np.append(True, losses[1:] != losses[:-1])
    return found | {"held_out": np.where(new, losses, np.nan)}


def _together(parts: list[tuple[Numbers, dict[str, Floats]]]) -> tuple[dict[str, Floats], Numbers]:
    names = (*COLUMNS, "runtime", "step_unit", "samples_unit", "dated", *(f"has_{name}" for name in THERE))
    numbers = np.concatenate([at for at, _ in parts]) if parts else np.empty(0, np.int64)
    order = np.argsort(numbers, kind="stable")
    columns = {}
    for name in names:
        fill = 0.0 if name.startswith("has_") or name == "dated" else np.nan
        column = [found.get(name, np.full(len(at), fill)) for at, found in parts]
        columns[name] = np.concatenate(column)[order] if column else np.empty(0)
    return columns, numbers[order]


def _times(columns: dict[str, Floats]) -> Floats:
    """Seconds that continue over midnight.

    Clocks without a date are ignored if other times in the log have one. Seconds since the run's start count
    if the log has no times.
    """
    times, dated = columns["time"].copy(), columns["dated"] > 0
    if not np.isfinite(times).any():
        return columns["runtime"]
    clocks = np.isfinite(times) & ~dated & (times < 86_400)
    if clocks.any() and not (np.isfinite(times) & ~clocks).any():
        times[clocks] = over_midnight(times[clocks])
    elif clocks.any():
        times[clocks] = np.nan
    return times


def _held_out(parts: list[tuple[Numbers, dict[str, Floats]]]) -> tuple[Floats, Floats]:
    """(steps, losses) of the second curve in order of steps. Of a step that occurs twice, the last counts."""
    if not parts:
        return np.empty(0), np.empty(0)
    columns, _ = _together(parts)
    known = (columns["step"] >= 0) & (columns["step"] < MOST_STEP) & np.isfinite(columns["held_out"])
    steps, losses = np.floor(columns["step"][known]), columns["held_out"][known]
    order = np.argsort(steps, kind="stable")
    last = np.append(np.diff(steps[order]) > 0, True) if len(order) else np.empty(0, bool)
    return steps[order][last], losses[order][last]
