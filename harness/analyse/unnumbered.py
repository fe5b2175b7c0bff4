"""Steps for a log in which no line names one: from a bare counter, the epoch, or the lines' order."""

from __future__ import annotations

import re
from typing import Literal

from harness.analyse.forms import BAR, KNOWN, NAMED_STEP, PAIR, STEP

_BRACKET = re.compile(rb"\[[ \t]{0,8}+(\d{1,12}+)(?:[ \t]{0,4}+/[ \t]{0,8}+\d{1,12}+)?[ \t]{0,4}+\]")
_SLASH = re.compile(rb"(?<![\w./-])(\d{1,12}+)[ \t]{0,2}+/[ \t]{0,2}+\d{1,12}+(?![\w./-])")
_EPOCH = re.compile(
    rb"(?<![A-Za-z0-9])(?:[eE]poch|EPOCH)[\"'`]?[ \t]{0,4}+[=:#]?[ \t]{0,4}+\[?(\d{1,9}+)(?!\w|[.,]\d)"
)
_LOOKED_AT = 2_000

Kind = Literal["step", "counter", "epoch", "order"]


class Unnumbered:
    """A giver of steps.

    `kind` says what they are. It is None while that is not decided; one line decides nothing.
    """

    def __init__(self) -> None:
        self.kind: Kind | None = None
        self._pattern: re.Pattern[bytes] | None = None
        self._count = 0

    def apply(self, lines: list[bytes]) -> list[bytes]:
        """The same lines, with `step=N` before each that names a loss, if no line names a step."""
        if self.kind == "step":
            return lines
        if self.kind is None:
            self._decide(lines)
        if self.kind in (None, "step"):
            return lines
        return [self._numbered(line) if b"oss" in line else line for line in lines]

    def _decide(self, lines: list[bytes]) -> None:
        found: list[bytes] = []
        for line in lines:
            if b"oss" not in line:
                continue
            if STEP.search(line) or BAR.search(line) or NAMED_STEP.search(line):
                self.kind = "step"
                return
            if _loss_named(line):
                found.append(line)
        if len(found) < 2:
            return
        self.kind = "order"
        kinds: tuple[tuple[re.Pattern[bytes], Kind], ...] = (
            (_BRACKET, "counter"),
            (_SLASH, "counter"),
            (_EPOCH, "epoch"),
        )
        for pattern, kind in kinds:
            counts = [pattern.search(line) for line in found[:_LOOKED_AT]]
            numbers = [int(count[1]) for count in counts if count]
            if len(numbers) == len(counts) and numbers == sorted(set(numbers)):
                epoch = all(_EPOCH.search(line) for line in found[:_LOOKED_AT])
                self.kind, self._pattern = "epoch" if epoch else kind, pattern
                return

    def _numbered(self, line: bytes) -> bytes:
        if not _loss_named(line):
            return line
        if self._pattern is None:
            self._count += 1
            return b"step=%d " % self._count + line
        count = self._pattern.search(line)
        return b"step=%d " % int(count[1]) + line[count.end() :] if count else line


def _loss_named(line: bytes) -> bool:
    return any(KNOWN.get(pair[1].decode().lower()) in ("loss", "held_out") for pair in PAIR.finditer(line))
