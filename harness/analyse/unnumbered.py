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
# Where some lines say that theirs is the loss of the training, the others break down what stands beside it,
# as ACT prints them: `Val loss: 5.0`, `l1: 0.3 loss: 5.0`, `Train loss: 0.4`, `l1: 0.1 loss: 0.4`.
_OF_TRAINING = re.compile(rb"(?i)(?<![A-Za-z0-9])train(?:ing)?[ _/]loss")
_SOME = 0.25
_LOOKED_AT = 2_000
# The share of lines that a count must have.
_MOST = 0.9

Kind = Literal["step", "counter", "epoch", "order"]


class Unnumbered:
    """A giver of steps.

    `kind` says what they are. It is None while that is not decided; one line decides nothing.
    """

    def __init__(self) -> None:
        self.kind: Kind | None = None
        self._pattern: re.Pattern[bytes] | None = None
        self._count, self._some_say = 0, False

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
            if _losses_named(line):
                found.append(line)
        if len(found) < 2:
            return
        said = [_OF_TRAINING.search(line) is not None for line in found if "loss" in _losses_named(line)]
        # A summary at the end says it too.
        self._some_say = _SOME * len(said) <= sum(said) < len(said)
        self.kind = "order"
        trained = [line for line in found if "loss" in _losses_named(line)]
        looked_at = (trained if len(trained) > 1 else found)[:_LOOKED_AT]
        kinds: tuple[tuple[re.Pattern[bytes], Kind], ...] = (
            (_BRACKET, "counter"),
            (_SLASH, "counter"),
            (_EPOCH, "epoch"),
        )
        for pattern, kind in kinds:
            counts = [pattern.search(line) for line in looked_at]
            numbers = [int(count[1]) for count in counts if count]
            # A line of a final test, behind the others, has no count.
            if len(numbers) >= _MOST * len(counts) and numbers == sorted(set(numbers)):
                epoch = sum(_EPOCH.search(line) is not None for line in looked_at) == len(numbers)
                self.kind, self._pattern = "epoch" if epoch else kind, pattern
                return

    def _numbered(self, line: bytes) -> bytes:
        named = _losses_named(line)
        if not named or (self._some_say and "held_out" not in named and not _OF_TRAINING.search(line)):
            return line
        if self._pattern is None:
            self._count += "loss" in named
            return b"step=%d " % self._count + line
        count = self._pattern.search(line)
        if not count:
            return line
        # In JSON the losses may stand before the count.
        rest = line if b"oss" in line[: count.start()] else line[count.end() :]
        return b"step=%d " % int(count[1]) + rest


def _losses_named(line: bytes) -> set[str]:
    return {KNOWN.get(pair[1].decode().lower(), "") for pair in PAIR.finditer(line)} & {"loss", "held_out"}
