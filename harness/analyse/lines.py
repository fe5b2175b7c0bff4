"""Records from the lines of a log: their steps and values. Written for a million lines.

The first line of a form is taken apart with care. From it comes a pattern with the same words and other
numbers, which is matched with all following lines at once. Only lines that fit no pattern are taken apart
again.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.after import After
from harness.analyse.bars import Bars
from harness.analyse.epochs import Epochs
from harness.analyse.forms import NAMED_STEP, PAIR, STEP, Form, take_apart
from harness.analyse.gather import Gathered, Values, gathered
from harness.analyse.headings import Headings
from harness.analyse.marked import held_out_named
from harness.analyse.ranks import Ranks
from harness.analyse.spellings import Spelling
from harness.analyse.spread import Spread
from harness.analyse.stepless import Numbering
from harness.analyse.tables import Table, table_of
from harness.analyse.text import Text
from harness.analyse.unnumbered import Unnumbered

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

_SESSION = re.compile(
    rb"Running on: |resuming from the checkpoint of step|Resuming from|Restoring checkpoint"
)
_SESSION_WORDS = (b"Running on: ", b"esuming from", b"Restoring checkpoint")
# A held-out loss. A form without one would match its line, and leave it out.
_SECOND = re.compile(rb"(?i)(?:val|eval|valid|validation|test|held_?out)[_/]?loss|loss[_/](?:val|eval)")
_SECOND_WORDS = (b"val", b"Val", b"VAL", b"est", b"EST", b"eld")
_CHUNK_LINES = 50_000
# A log with more forms than this has no form: its lines are taken apart one by one, without patterns.
_MOST_FORMS = 100
MOST_RECORDS = 2_000_000


class Records(NamedTuple):
    """The records of a log.

    `log` holds them in order. `sessions` are the indices at which a program reported its start.

    `filled` of `lines` are not blank. `understood` lines were records, states of a progress bar or greetings.
    `strange` is one of the others, for a person to see. `numbered` says what was counted where no line names
    a step.
    """

    log: Gathered
    sessions: list[int]
    lines: int
    filled: int
    understood: int
    strange: str | None
    form: Literal["metrics", "console", "table"]
    partial: list[str]
    torn: int
    unreadable: int
    decimals: int | None
    numbered: Literal["line", "epoch"] | None
    bars: Bars

    @property
    def columns(self) -> dict[str, Floats]:
        """The training records, one entry per line."""
        return self.log.columns


def read_records(text: Text) -> Records:
    """All lines that name a step and a loss, and those that name a held-out loss."""
    return _Reader(text).read()


def _is_torn(last: bytes, before: list[bytes]) -> bool:
    """True if the last line, which has no line end, was cut off.

    It then lacks values, digits or the brace that a record before it has. A line of another kind is whole.
    """
    records = [line for line in reversed(before) if STEP.search(line) and PAIR.search(line)]
    if not records or not STEP.search(last):
        return False
    if last.lstrip().startswith(b"{") and not last.rstrip().endswith(b"}"):
        return True
    here = PAIR.findall(last)
    keys, longer = [key for key, _ in here], False
    for whole in records:
        there = PAIR.findall(whole)
        if [key for key, _ in there] == keys:
            if whole.rstrip().endswith(b"}") != last.rstrip().endswith(b"}"):
                return True
            return b"{" not in whole and len(here[-1][1].partition(b".")[2]) < len(
                there[-1][1].partition(b".")[2]
            )
        longer |= [key for key, _ in there[: len(keys)]] == keys
    return longer


class _Reader:
    """A reader of records from lines. It keeps the forms from one list of lines to the next."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._values = Values(_CHUNK_LINES)
        self._bars = Bars()
        self._spelling, self._epochs, self._ranks = Spelling(), Epochs(), Ranks()
        self._headings, self._after, self._spread = Headings(), After(), Spread()
        self._numbering, self._unnumbered = Numbering(), Unnumbered()
        self._table: Table | None = None
        self._is_json = False
        self._marks: list[int] = []
        self._forms: dict[bool, list[tuple[Form, re.Pattern[bytes]]]] = {True: [], False: []}
        self._learned = 0
        self._understood = self._unreadable = self._blank = self._count = 0
        self._strange: bytes | None = None
        self._candidates: deque[bytes] = deque(maxlen=100)

    def read(self) -> Records:
        torn = 0
        for lines in self._text:
            self._take(lines)
            if self._values.count > MOST_RECORDS:
                self._text.stop(
                    f"the log has more than {MOST_RECORDS:,} records: what comes after was not read"
                )
                break
        last = self._text.tail
        if last is not None and self._table is None and self._is_torn(last):
            torn = 1
        elif last is not None:
            self._take([last])
        log = gathered(self._values)
        marks = [int(np.searchsorted(log.numbers, mark)) for mark in self._marks]
        filled = self._count - self._blank
        return Records(
            log=log,
            sessions=marks,
            lines=self._text.lines,
            filled=filled,
            understood=min(filled, self._understood + self._values.count + (self._table is not None)),
            strange=self._strange.decode(errors="replace")[:120] if self._strange is not None else None,
            form="table" if self._table else "metrics" if self._is_json else "console",
            partial=[*(self._table.remarks() if self._table else []), *self._ranks.remarks()],
            torn=torn,
            unreadable=self._unreadable,
            decimals=self._values.decimals,
            numbered=(
                "epoch"
                if self._unnumbered.kind == "epoch"
                or self._headings.used
                or (self._table is not None and self._table.epochs)
                else "line"
                if self._numbering.counted or self._unnumbered.kind == "order"
                else None
            ),
            bars=self._bars,
        )

    def _take(self, lines: list[bytes]) -> None:
        """Takes in the next lines of the file."""
        begin, self._count = self._count, self._count + len(lines)
        if begin == 0:
            self._table = table_of(lines)
            self._is_json = next((line for line in lines if line.strip()), b"").lstrip().startswith(b'{"')
        if self._table is not None:
            for form, numbers, rows in self._table.rows(lines, begin):
                self._values.keep(form, numbers, rows)
            return
        joined = b"\n".join(lines)
        lines, joined = self._spread.apply(lines, joined)
        has_bars = b"it/s" in joined or b"s/it" in joined
        spelled, text = self._spelling.apply(lines, joined)
        headed = self._headings.apply(self._ranks.apply(spelled), text)
        counted = self._epochs.apply(headed, text)
        numbered = self._unnumbered.apply(self._numbering.apply(counted, text))
        named = held_out_named(numbered, text)
        if self._unnumbered.kind == "step":
            named = self._after.apply(named, text)
        at = [index for index, line in enumerate(named) if b"oss" in line]
        if len(at) < len(named):
            self._pass_over([line for line in named if b"oss" not in line], begin, joined)
        states = (
            [index for index in at if b"it/s" in named[index] or b"s/it" in named[index]] if has_bars else []
        )
        if has_bars:
            self._understood += self._bars.take(lines, joined) - len(states)
        apart = set(states)
        logged = [index for index in at if index not in apart] if apart else at
        self._candidates.extend(spelled[index] for index in logged[-100:])
        held = set()
        if any(word in joined for word in _SECOND_WORDS):
            held = {index for index in at if _SECOND.search(named[index])}
        for group in (logged, states):
            for second in (False, True) if held else (False,):
                part = [index for index in group if (index in held) == second] if held else group
                if part:
                    self._read([named[index] for index in part], np.array(part) + begin, second=second)

    def _pass_over(self, others: list[bytes], begin: int, joined: bytes) -> None:
        """Counts lines that name no loss. A program's greetings among them become session marks."""
        self._blank += sum(not line or line.isspace() for line in others)
        if any(word in joined for word in _SESSION_WORDS):
            marks = [
                number
                for number, line in enumerate(joined.split(b"\n"), begin)
                if b"oss" not in line and _SESSION.search(line)
            ]
            self._marks += marks
            self._understood += len(marks)
        if self._strange is None:
            self._strange = next(
                (line for line in others if line.strip() and b"it/s" not in line and b"s/it" not in line),
                None,
            )

    def _is_torn(self, last: bytes) -> bool:
        """True if the last line, which has no line end, was cut off. Lines are compared as spelled."""
        spelled, _ = self._spelling.apply([last], last)
        return _is_torn(spelled[0], list(self._candidates))

    def _read(self, lines: list[bytes], numbers: Numbers, *, second: bool) -> None:
        """Reads candidate lines. The first ones are read one by one, to learn their form.

        `second`: all of them name a held-out loss; else none does.
        """
        if not self._forms[second] and len(lines) > 100:
            self._read(lines[:100], numbers[:100], second=second)
            lines, numbers = lines[100:], numbers[100:]
        if len(lines) > 20:
            joined = b"\n".join(lines)
            for form, pattern in self._forms[second][:-4:-1]:
                found = pattern.findall(joined)
                if len(found) == len(lines):
                    self._values.keep(
                        form, numbers, found if isinstance(found[0], tuple) else [(one,) for one in found]
                    )
                    return
        if len(lines) > 2000 and self._forms[second]:
            # Another kind of line is among them. Only its neighbourhood is read line by line.
            middle = len(lines) // 2
            self._read(lines[:middle], numbers[:middle], second=second)
            self._read(lines[middle:], numbers[middle:], second=second)
            return
        for line, number in zip(lines, numbers, strict=True):
            self._read_one(line, int(number), second=second)

    def _read_one(self, line: bytes, number: int, *, second: bool) -> None:
        if b"tep" not in line and b"TEP" not in line and b"it" not in line:
            # The line has neither a step nor a bar that counts steps.
            if self._strange is None and line.strip():
                self._strange = line
            return
        for form, pattern in reversed(self._forms[second]):
            match = pattern.match(line)
            if match:
                self._values.keep(form, np.array([number]), [match.groups(b"")])
                return
        apart = take_apart(line)
        if apart is None:
            if _SESSION.search(line):
                self._marks.append(number)
                self._understood += 1
                return
            if STEP.search(line) or (NAMED_STEP.search(line) and b"loss" in line):
                self._unreadable += 1
                self._strange = line
            elif self._strange is None and line.strip():
                self._strange = line
            return
        form, row = apart
        self._values.keep(form, np.array([number]), [row])
        if self._learned < _MOST_FORMS:
            self._learned += 1
            pattern = re.compile(form.pattern)
            if pattern.match(line):
                self._forms[second] = [*self._forms[second][-7:], (form, pattern)]
