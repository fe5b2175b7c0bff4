"""Records that a log spreads over several lines, each on its last line.

These are: dictionaries and documents of JSON with a value on each line, messages that rich has wrapped, and
the tables that Stable-Baselines3 prints.
"""

from __future__ import annotations

import re

from harness.analyse.forms import PAIR, STEP

_MOST_LINES, _MOST_BYTES = 200, 8_000
_BEGIN = re.compile(rb"\A[ \t]{0,40}+\{[^{}]{0,400}+\Z")
# rich indents the rest of a message to where it began, behind the time and the level.
_INDENT, _WRAPPED = b" " * 10, b"\n" + b" " * 10
_RULE = re.compile(rb"\A-{20,400}+[ \t]{0,8}+\Z")
_ROW = re.compile(
    rb"\A\| {1,8}+([A-Za-z][\w/]{0,60}+) {0,60}+\| {0,8}+([-+\w.]{1,40}+) {0,60}+\|[ \t]{0,8}+\Z"
)
_ROWS = b"total_timesteps"
_OF_TABLES = {b"total_timesteps": b"step", b"loss": b"loss", b"learning_rate": b"learning_rate"}


class Spread:
    """A joiner of lines, from one list of lines to the next."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._kind = ""

    def apply(self, lines: list[bytes], joined: bytes) -> tuple[list[bytes], bytes]:
        """(the same lines, all of them as one text), with a record in place of its last line."""
        if not (self._held or b"{\n" in joined or b",\n" in joined or _WRAPPED in joined or _ROWS in joined):
            return lines, joined
        out = list(lines)
        for index, line in enumerate(lines):
            before = len(self._held)
            record = self._record(line)
            if record:
                # The parts would be read once more.
                out[max(0, index - before) : index + 1] = [b""] * min(before, index) + [record]
        return out, b"\n".join(out)

    def _record(self, line: bytes) -> bytes:
        """The record that ends on this line. Empty if none does."""
        held = self._held
        if not held:
            self._begin(line)
            return b""
        held.append(line)
        ends, parts = True, [part.strip() for part in held]
        if self._kind == "table":
            ends = not line.startswith(b"|")
            rows = [row for part in parts if (row := _ROW.search(part)) and row[1] in _OF_TABLES]
            parts = [_OF_TABLES[row[1]] + b"=" + row[2] for row in rows] if ends else []
        elif self._kind == "object":
            ends = b"}" in line
        elif not line.startswith(_INDENT) or STEP.search(line):
            parts = []
        if not ends and len(held) <= _MOST_LINES and sum(map(len, held)) <= _MOST_BYTES:
            return b""
        self._held = []
        record = b" ".join(parts)
        if ends and _is_record(record):
            return record
        self._begin(line)
        return b""

    def _begin(self, line: bytes) -> None:
        """Looks whether a record begins on this line."""
        if line.lstrip().startswith(b"{") and _BEGIN.search(line):
            self._held, self._kind = [line], "object"
        elif b"tep" in line and b"oss" not in line and line.strip() and STEP.search(line):
            self._held, self._kind = [line], "message"
        elif line.startswith(b"---") and _RULE.search(line):
            self._held, self._kind = [line], "table"


def _is_record(text: bytes) -> bool:
    return STEP.search(text) is not None and any(b"oss" in pair[1].lower() for pair in PAIR.finditer(text))
