"""Losses below a heading that names their epoch, as robomimic prints them.

`Train Epoch 3`, and below it a document of JSON with `"Loss": 0.5` on a line; then `Validation Epoch 3` with
another one.
"""

from __future__ import annotations

import re

from harness.analyse.forms import BAR, PAIR, STEP

_HEADING = re.compile(
    rb"\A[ \t=*#-]{0,40}+(?i:(train|training)|val|valid|validation|test|eval|evaluation) (?i:epoch)"
    rb"[: #]{1,3}+(\d{1,9}+)(?:/\d{1,9}+)?[ \t:.=*#-]{0,40}+\Z"
)
_EPOCH = (b" epoch", b" Epoch", b" EPOCH")


class Headings:
    """A giver of epochs, from one list of lines to the next. `used`: a step is an epoch."""

    def __init__(self) -> None:
        self.used = False
        self._epoch: int | None = None
        self._is_trained = True

    def apply(self, lines: list[bytes], joined: bytes) -> list[bytes]:
        """The same lines, with `step=N` before a loss below a heading, and `eval_loss` for a held-out one."""
        if self._epoch is None and not any(word in joined for word in _EPOCH):
            return lines
        return [self._line(line) for line in lines]

    def _line(self, line: bytes) -> bytes:
        heading = _HEADING.search(line) if any(word in line for word in _EPOCH) else None
        if heading is not None:
            self._epoch, self._is_trained = int(heading[2]), heading[1] is not None
            return line
        if self._epoch is None or b"oss" not in line or STEP.search(line) or BAR.search(line):
            return line
        loss = next((pair for pair in PAIR.finditer(line) if pair[1].lower() == b"loss"), None)
        if loss is None:
            return line
        self.used = True
        name = b"loss" if self._is_trained else b"eval_loss"
        return b"step=%d " % self._epoch + line[: loss.start(1)] + name + line[loss.end(1) :]
