"""Steps for lines that name a loss but no step, as the Trainer of transformers prints them.

Such a line is {'loss': 0.5, 'epoch': 0.1}. The step comes from the progress bar around the line, else from
the epoch and the number of steps that the log states. Without these, lines are counted.
"""

from __future__ import annotations

import re

from harness.analyse.forms import BAR, NAMED_STEP, STEP

# What a collector of logs puts before each line: compose, Ray, a launcher, containerd, Docker, journald.
_COLLECTED = re.compile(
    rb"\A[ \t]{0,4}+(?:[A-Za-z][\w.-]{0,80}+ {1,40}+\| "
    rb"|\(\w{1,40}+[^()\n]{0,80}?\bpid=\d{1,9}+[^()\n]{0,80}+\) {0,4}+"
    rb"|\[(?:rank ?|RANK |default)?\d{1,5}+\]:? {0,4}+|\d{1,5}+: {1,4}+"
    rb"|\d{4}-\d\d-\d\dT[\d:.,]{8,20}+(?:Z|[-+]\d\d:?\d\d)? (?:std(?:out|err) [FP] )?+"
    rb"|[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S{1,80}+ [^\s\[]{1,80}+\[\d{1,9}+\]: )"
)
_PLAIN = re.compile(rb"\s{0,200}+\{[^{}]{0,8000}+\}")
_TOTAL = re.compile(rb"Total optimization steps = ([\d,]{1,20}+)")
_EPOCHS = re.compile(rb"Num [Ee]pochs = ([\d,]{1,20}+)")
_EPOCH = re.compile(rb"[\"']epoch[\"']: [\"']?([\d.]{1,20}+)")
_WHOLE_EPOCH = re.compile(rb"\"epoch\": {0,4}+\d{1,9}+(?![.\w])")
# Behind a bar's count: its rate.
_RATE = re.compile(rb"[^,\]\r\n]{1,20}+, {1,4}+([\d.?]{1,12}+(?:it/s|s/it))")
# The mean over the whole run, at its end. It is no point of the curve.
_SUMMARY = re.compile(rb"train_runtime[\"']: {0,4}+[\"']?\d")


class Numbering:
    """Assigns steps to lines that have none. `counted`: the steps are only the lines' order."""

    def __init__(self) -> None:
        self.counted = False
        self._count = 0
        self._bar_total: bytes | None = None
        self._bar: int | None = None
        self._rate: bytes | None = None
        self._elapsed: tuple[bytes | None, ...] = ()
        self._bar_follows, self._given = False, (0, 0)
        self._total: int | None = None
        self._epochs: int | None = None

    def apply(self, lines: list[bytes], joined: bytes) -> list[bytes]:
        """The same lines, with `step=N` before each that lacks a step. `joined`: all of them as one text."""
        if not (b"oss'" in joined or b'oss"' in joined):
            self._note(lines, joined)
            return lines
        out = list(lines)
        for index, line in enumerate(lines):
            if b"|" in line or b"Total" in line or b"Num " in line:
                self._look(line)
            if b"oss" not in line or b"{" not in line:
                continue
            if b'"step":' in line and b"train_runtime" not in line:
                continue
            if not line.lstrip().startswith(b"{"):
                line = _COLLECTED.sub(b"", line, count=1)  # noqa: PLW2901
            if b"train_runtime" in line and _SUMMARY.search(line) and _PLAIN.match(line):
                # The summary's "train_loss" would look like a point, with a step or without.
                out[index] = b""
            elif self._of_an_epoch(line):
                continue
            elif not (STEP.search(line) or NAMED_STEP.search(line)) and _PLAIN.match(line):
                out[index] = b"step=%d " % self._step(line, lines[index + 1 : index + 4]) + line.lstrip()
        return out

    def _of_an_epoch(self, line: bytes) -> bool:
        """True for a record of a whole epoch.

        transformers prints a fraction, and its log has a bar or a total.
        """
        return self._bar is None and self._total is None and _WHOLE_EPOCH.search(line) is not None

    def _note(self, lines: list[bytes], joined: bytes) -> None:
        """Looks at lines that hold no such record. Only the last state of the bar counts."""
        if b"Total optimization steps" in joined or b"Num " in joined:
            for line in lines:
                self._look(line)
        elif self._bar_total is None or b"it/s" in joined or b"s/it" in joined:
            for line in [*lines[:3], *lines[-20:]]:
                self._look(line)

    def _look(self, line: bytes) -> None:
        if (
            b"/" in line
            and (bar := BAR.search(line))
            and b"|" in line[: bar.start()]
            and _COLLECTED.sub(b"", line[: bar.start()], count=1).partition(b"%")[0].strip().isdigit()
        ):
            # transformers' training bar has no name and comes first. The bars of an evaluation come after it.
            if self._bar_total is None:
                self._bar_total = bar[2]
            if bar[2] == self._bar_total and len(bar[1]) < 16:
                self._bar, self._rate, self._elapsed = int(bar[1]), _rate(bar), bar.groups()[2:]
        elif b"Total optimization steps" in line and (total := _TOTAL.search(line)):
            self._total = _whole(total[1])
        elif b"Num " in line and (epochs := _EPOCHS.search(line)):
            self._epochs = _whole(epochs[1])

    def _redrawn(self, state: re.Match[bytes], one_on: int) -> bool:
        """True if the bar was drawn only for the line before: it has the line's count, and an old rate.

        The bar of a fast run is drawn seldom, though not less than once a second. One step on, the next step
        of a slow run may have the same rate.
        """
        rate, count = _rate(state), int(state[1])
        if rate is None or rate != self._rate or not 0 <= count - one_on < _steps_a_second(rate):
            return False
        return count > one_on or state.groups()[2:] == self._elapsed

    def _step(self, line: bytes, after: list[bytes]) -> int:
        states = [
            bar
            for text in after
            if (bar := BAR.search(text)) and bar[2] == (self._bar_total or bar[2]) and len(bar[1]) < 16
        ]
        if self._bar is None and states and b"|" in next(text for text in after if text.strip()):
            # A terminal's text has only the last state of the bar before each line, which is the one that
            # was drawn behind the line before.
            self._bar_follows = True
        if self._bar_follows:
            # The state behind the last line may not be there yet.
            before, last = self._given
            step = int(states[0][1]) if states else 2 * last - before
            self._given = last, step
            return step
        if self._bar is not None:
            # The bar is drawn again after the line, with the line's own step. The state before the line may
            # be one step behind.
            one_on = self._bar + 1
            if states and self._redrawn(states[0], one_on):
                return int(states[0][1])
            return (
                one_on
                if states and int(states[0][1]) == one_on and _zeros(one_on) > _zeros(self._bar)
                else self._bar
            )
        epoch = _EPOCH.search(line)
        if self._total and self._epochs and epoch and _is_number(epoch[1]):
            return round(float(epoch[1]) / self._epochs * self._total)
        self.counted = True
        self._count += b"eval_" not in line
        return self._count


def _rate(bar: re.Match[bytes]) -> bytes | None:
    found = _RATE.match(bar.string, bar.end())
    return found[1] if found else None


def _steps_a_second(rate: bytes) -> float:
    """The steps of a second at this rate. A bar without a rate has begun just now, and may have any."""
    digits = rate[:-4]
    if digits == b"?":
        return float("inf")
    return float(digits) if rate.endswith(b"it/s") and _is_number(digits) else 1.0


def _zeros(step: int) -> int:
    """The number of trailing zeros of a step: loggers prefer round steps."""
    return len(str(step)) - len(str(step).rstrip("0"))


def _whole(digits: bytes) -> int | None:
    text = digits.replace(b",", b"")
    return int(text) if text.isdigit() else None


def _is_number(text: bytes) -> bool:
    return text.count(b".") <= 1 and text.strip(b".") != b""
