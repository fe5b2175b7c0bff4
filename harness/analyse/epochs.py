"""Steps that begin anew in each epoch, counted on over the epochs.

Such lines are `Epoch [2/6], Step [50/1000], Loss: 0.5`, a progress bar for each epoch, or those of Keras,
which names the epoch on a line before. Where the steps go on over the epochs, the lines stay as they are.
"""

from __future__ import annotations

import re

from harness.analyse.forms import BAR, STEP
from harness.analyse.marked import counts_alone

# A whole number: transformers prints fractions of an epoch.
_EPOCH = re.compile(
    rb"(?<![A-Za-z0-9])(?:[eE]poch|EPOCH)(?:\([a-z]{1,9}+\))?[\"'`]?[ \t]{0,4}+[=:#]?[ \t]{0,8}+"
    rb"\[?[ \t]{0,8}+(\d{1,9}+)(?!\w|[.,]\d)"
)
_HEADER = re.compile(rb"\A[ \t]{0,8}+Epoch (\d{1,9}+)(?:/\d{1,9}+)?[ \t:.]{0,8}+\Z")
_COUNTER = re.compile(rb"(?<![\w./])\[?[ \t]{0,8}+(\d{1,12}+)[ \t]{0,4}+/[ \t]{0,8}+(\d{1,12}+)(?![\w./])")
_KERAS = re.compile(
    rb"\A[ \t]{0,12}+(\d{1,12}+)/(\d{1,12}+) {1,4}+(?:\[[=>.]{1,80}+\]|(?:\xe2\x94\x81| ){1,80}+)"
)


class Epochs:
    """A counter over epochs, from one list of lines to the next."""

    def __init__(self) -> None:
        self._named: int | None = None
        self._offsets: dict[int, int] = {}
        self._epoch: int | None = None
        self._first = self._last = self._spacing = 0

    def apply(self, lines: list[bytes], joined: bytes) -> list[bytes]:
        """The same lines, with `step=N` in those whose step counts within an epoch."""
        if b"poch" not in joined and b"EPOCH" not in joined and self._named is None:
            return lines
        return [self._line(line) for line in lines]

    def _line(self, line: bytes) -> bytes:
        if b"oss" not in line:
            if b"Epoch" in line and (header := _HEADER.search(line)):
                self._named = int(header[1])
            return line
        keras = _KERAS.search(line) if self._named is not None else None
        if keras is not None and self._named is not None:
            step = self._over(self._named, int(keras[1]), int(keras[2]))
            return b"step=%d " % step + line[keras.end() :]
        epoch = _EPOCH.search(line)
        return line if epoch is None else self._within(line, epoch)

    def _within(self, line: bytes, epoch: re.Match[bytes]) -> bytes:
        """A line that names its epoch."""
        bar = BAR.search(line)
        named = STEP.search(line, bar.end() if bar else 0)
        found = named or bar
        if found is None:
            return self._counted(line, epoch)
        total = (named[2] or b"/")[1:] if named else found[2]
        if not found[1].isdigit() or max(len(found[1]), len(total)) > 12:
            return line
        within = int(found[1])
        step = self._step(line, int(epoch[1]), within, int(total or 0))
        if step == within:
            return line
        if named is not None:
            return line[: named.start(1)] + b"%d" % step + line[named.end() :]
        return line[: found.end()] + b"step=%d " % step + line[found.end() :]

    def _counted(self, line: bytes, epoch: re.Match[bytes]) -> bytes:
        """A line with a counter and no name for it: `Epoch: [2][50/1000] Loss 0.5`."""
        counter = _COUNTER.search(line, epoch.end())
        if counter is None or counter.start() > epoch.end() + 12:
            return line
        step = self._step(line, int(epoch[1]), int(counter[1]), int(counter[2]))
        mark = b"[eval] " if counts_alone(line) else b""
        return mark + b"step=%d " % step + line[counter.end() :]

    def _step(self, line: bytes, epoch: int, within: int, length: int) -> int:
        """The step of this line. A held-out loss whose own count goes back is one of the last step."""
        if self._epoch is not None and epoch <= self._epoch and counts_alone(line):
            return self._offsets[self._epoch] + max(self._last, within if epoch == self._epoch else 0)
        if epoch == self._epoch and within == 0 and 0 < length <= self._last:
            # Lightning sets the bar of a finished epoch back before it names the next one.
            return self._offsets[epoch] + self._last
        return self._over(epoch, within, length)

    def _over(self, epoch: int, within: int, length: int) -> int:
        """The step over all epochs. `length`: the steps of an epoch, or 0 if the line does not tell."""
        before = self._epoch
        if before is None or epoch == before or epoch in self._offsets:
            if epoch == before:
                self._spacing = within - self._last if within > self._last else self._spacing
            else:
                self._first = within
        elif epoch > before:
            again = within <= self._last
            of_one = length if length >= self._last else self._last - self._first + max(1, self._spacing)
            self._offsets[epoch] = self._offsets.get(before, 0) + (of_one * (epoch - before) if again else 0)
            self._first = within
        self._offsets.setdefault(epoch, 0)
        self._epoch, self._last = epoch, within
        return self._offsets[epoch] + within
