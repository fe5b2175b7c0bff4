"""Records from the lines of a log: which step, which values. Written for a million lines.

The first line of a kind is taken apart with care; from it comes a pattern with the same words and other numbers, which the lines after it
are matched with in one go. Only lines that no pattern fits are taken apart again.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COLUMNS = ("step", "loss", "grad_norm", "param_norm", "learning_rate", "step_s", "data_s", "time")
_ALIASES = {
    "loss": "loss|train_loss|train/loss|training_loss|avg_loss",
    "grad_norm": "grad_norm|train/grad_norm|gradient_norm|gnorm",
    "param_norm": "param_norm|train/param_norm",
    "learning_rate": "learning_rate|train/learning_rate|train/lr|lr",
    "step_s": "step_s",
    "data_s": "data_s",
    "time": "_timestamp",
}
_KNOWN = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split("|")}
_NUMBER = rb"[-+]?(?:\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?|[nN]a[nN]|[iI]nf(?:inity)?|null)"
# The same, told from other words by the conversion instead of by the pattern: several times faster.
_CELL = rb"[-+\w.]+(?:,\d+)*(?:\.\d+)?"
_PAIR = re.compile(rb'"?([A-Za-z_][\w/]*)"?[ \t]*[=: ][ \t]*"?(' + _NUMBER + rb")(?![\w.])")
_STEP = re.compile(rb'(?:\b|_)[sS]tep"?[ \t]*[=: ][ \t]*(\d+(?:,\d{3})*)(/\d+)?(?![\w.]*\d)')
_PACE = re.compile(rb"(?:(\d+) min )?(?<!h )(\d+(?:\.\d+)?) s a step")
_CLOCK = rb"(?:(\d{4}-\d\d-\d\d)[T ])?(\d\d:\d\d:\d\d(?:[.,]\d{1,6})?)"
_SESSION = re.compile(rb"Running on: |resuming from the checkpoint of step|Resuming from|Restoring checkpoint")
_CHUNK_LINES = 50_000


class Records(NamedTuple):
    """`columns` in the order of the file, NaN where a line has no such value. `sessions`: indices at which a program said that it starts."""

    columns: dict[str, Floats]
    sessions: list[int]
    lines: int
    torn: int
    unreadable: int
    decimal_commas: bool
    decimals: int | None


class _Template(NamedTuple):
    pattern: re.Pattern[bytes]
    fields: tuple[str, ...]
    offset: int


def read_records(text: bytes, *, ends_whole: bool) -> Records:
    """All lines that name a step and a loss."""
    every = text.split(b"\n")
    lines = [line for line in every if b"tep" in line or b"Running on: " in line or b"Resum" in line or b"Restor" in line]
    reader = _Reader()
    torn = 0
    if lines and not ends_whole and every[-1] and lines[-1] is every[-1] and _is_torn(every[-1], lines[:-1]):
        lines.pop()
        torn = 1
    for start in range(0, len(lines), _CHUNK_LINES):
        reader.read(lines[start : start + _CHUNK_LINES])
    columns = reader.columns()
    return Records(columns, reader.sessions, len(every) - (not every[-1]), torn, reader.unreadable, reader.decimal_commas, reader.decimals)


def _is_torn(last: bytes, before: list[bytes]) -> bool:
    """Whether the last line, which has no end, lacks something that the record before it has: values, digits, its closing brace."""
    whole = next((line for line in reversed(before[-100:]) if _STEP.search(line) and _PAIR.search(line)), None)
    if whole is None or not _STEP.search(last):
        return False
    here, there = _PAIR.findall(last), _PAIR.findall(whole)
    if [key for key, _ in here] != [key for key, _ in there] or whole.rstrip().endswith(b"}") != last.rstrip().endswith(b"}"):
        return True
    if not there or b"{" in whole:
        return False
    return len(here[-1][1].partition(b".")[2]) < len(there[-1][1].partition(b".")[2])


class _Reader:
    """Lines in, columns out; templates are kept from chunk to chunk."""

    def __init__(self) -> None:
        self.sessions: list[int] = []
        self.unreadable = 0
        self.decimals: int | None = None
        self._templates: list[_Template] = []
        self.decimal_commas = False
        self._columns: dict[str, list[Floats]] = {name: [] for name in COLUMNS}
        self._rows_of: _Template | None = None
        self._rows: list[tuple[bytes, ...]] = []
        self._count = 0

    def read(self, lines: list[bytes]) -> None:
        """Takes the lines in; the first ones one by one, to learn their form."""
        if not self._templates and len(lines) > 100:
            self.read(lines[:100])
            lines = lines[100:]
        for template in self._templates[-2:]:
            found = template.pattern.findall(b"\n".join(lines))
            if len(found) == len(lines):
                self._keep(template, found if isinstance(found[0], tuple) else [(one,) for one in found])
                return
        if len(lines) > 2000 and self._templates:
            # Something else is among them: only its neighbourhood is read line by line.
            middle = len(lines) // 2
            self.read(lines[:middle])
            self.read(lines[middle:])
            return
        for line in lines:
            self._read_one(line)

    def _keep(self, template: _Template, rows: list[tuple[bytes, ...]]) -> None:
        """Rows become numbers when as many as a chunk are together: millions of small objects cost more than they hold."""
        self._count += len(rows)
        if self._rows and (template is not self._rows_of or len(self._rows) >= _CHUNK_LINES):
            self._convert()
        self._rows_of = template
        self._rows += rows

    def _read_one(self, line: bytes) -> None:
        for template in reversed(self._templates):
            match = template.pattern.match(line)
            if match:
                self._keep_one(template, match.groups(b""))
                return
        learned = _learn(line)
        if learned is not None and (match := learned.pattern.match(line)):
            self._templates = [*self._templates[-7:], learned]
            self._keep_one(learned, match.groups(b""))
        elif _SESSION.search(line):
            self.sessions.append(self._count)
        elif _STEP.search(line) and b"loss" in line:
            self.unreadable += 1

    def _keep_one(self, template: _Template, row: tuple[bytes, ...]) -> None:
        self._keep(template, [row])
        loss = row[template.fields.index("loss")].replace(b",", b".")
        digits = 9 if b"e" in loss else len(loss.partition(b".")[2])
        self.decimals = max(digits, self.decimals or 0)

    def columns(self) -> dict[str, Floats]:
        self._convert()
        return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in self._columns.items()}

    def _convert(self) -> None:
        template, rows, self._rows = self._rows_of, self._rows, []
        if template is None or not rows:
            return
        raw = dict(zip(template.fields, zip(*rows, strict=True), strict=True))
        for name in COLUMNS:
            if name == "time" and "clock" in raw:
                values = _clock(raw["date"], raw["clock"])
            elif name in raw:
                values = self._numbers(raw[name], thousands=name == "step")
                if name == "step":
                    values = values - template.offset
                elif name == "step_s" and "step_min" in raw:
                    values = values + 60 * self._numbers(raw["step_min"])
            else:
                values = np.full(len(rows), np.nan)
            self._columns[name].append(values)

    def _numbers(self, raw: tuple[bytes, ...], *, thousands: bool = False) -> Floats:
        try:
            return np.array(raw, dtype="S").astype(np.float64)
        except ValueError:
            pairs = [_number(text, thousands=thousands) for text in raw]
            self.decimal_commas |= any(comma for _, comma in pairs)
            return np.array([value for value, _ in pairs])


def _learn(line: bytes) -> _Template | None:
    """The pattern of lines like this one, or None when it names no step or no loss."""
    step = _STEP.search(line)
    if step is None:
        return None
    spots: dict[int, tuple[int, str]] = {step.start(1): (step.end(1), "step")}
    seen = {"step"}
    if pace := _PACE.search(line):
        spots[pace.start(2)] = (pace.end(2), "step_s")
        if pace[1]:
            spots[pace.start(1)] = (pace.end(1), "step_min")
        seen.add("step_s")
    is_json = line.lstrip().startswith(b"{")
    for pair in _PAIR.finditer(line):
        key = pair[1].decode()
        name = "time" if is_json and key == "time" else _KNOWN.get(key)
        if name is not None and name not in seen and pair.start(2) not in spots:
            spots[pair.start(2)] = (pair.end(2), name)
            seen.add(name)
    if "loss" not in seen:
        return None
    fields: list[str] = []
    first, last = min(spots), max(end for end, _ in spots.values())
    clock = re.search(_CLOCK, line[: step.start()]) if not is_json else None
    pattern = rb"(?m)^"
    if clock:
        fields += ["date", "clock"]
        pattern += rb".*?" + _CLOCK
    lead = line[line.rfind(b"\n", 0, first) + 1 : first]
    anchor = lead if is_json else lead[step.start() :] if step.start() < first else b""
    pattern += (b"" if is_json else rb".*?") + _loosened(anchor)
    position = first
    for start in sorted(spots):
        end, name = spots[start]
        pattern += _loosened(line[position:start]) + rb"(" + _CELL + rb")"
        fields.append(name)
        position = end
    pattern += rb".*$"
    one_based = step[2] is not None and b"a step" in line
    return _Template(re.compile(pattern), tuple(fields), int(one_based)) if last else None


def _loosened(text: bytes) -> bytes:
    """The words of `text` as they are, any number for its numbers, and any blanks for its blanks."""
    parts = re.split(rb"(\d+(?:[.,]\d+)*|[ \t]+)", text)
    return b"".join((_NUMBER if part[:1].isdigit() else rb"[ \t]+") if i % 2 else re.escape(part) for i, part in enumerate(parts))


def _number(text: bytes, *, thousands: bool) -> tuple[float, bool]:
    """One number as people write it: 0.1146, 0,1146, 1,803.1594, 1.803,1594, nan, null."""
    if thousands:
        return float(text.replace(b",", b"")), False
    comma, point = text.rfind(b","), text.rfind(b".")
    try:
        if comma < 0:
            return float(text), False
        if point > comma:
            return float(text.replace(b",", b"")), False
        return float(text.replace(b".", b"").replace(b",", b".")), True
    except ValueError:
        return float("nan"), False


def _clock(dates: tuple[bytes, ...], clocks: tuple[bytes, ...]) -> Floats:
    """Seconds; clocks without a date go on over midnight."""
    digits = np.array([clock[:8] for clock in clocks], dtype="S8").view(np.uint8).reshape(-1, 8).astype(np.float64) - 48
    seconds = digits @ np.array([36_000, 3600, 0, 600, 60, 0, 10, 1], float)
    seconds += np.array([float(b"0." + clock[9:]) if len(clock) > 9 else 0.0 for clock in clocks])
    if dates[0]:
        days = np.array([date.decode() for date in dates], dtype="U10")
        try:
            return np.asarray(seconds + days.astype("datetime64[D]").astype(np.float64) * 86_400)
        except ValueError:
            return np.full(len(seconds), np.nan)
    return np.asarray(seconds + 86_400 * np.concatenate([[0], np.cumsum(np.diff(seconds) < -43_200)]))
