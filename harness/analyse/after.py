"""Held-out losses on lines that name no step: they are of the step that was trained last.

Such lines are `val loss 0.5`, `Test set: average loss: 0.5`, or the bar of a validation, which counts its own
batches.
"""

from __future__ import annotations

import re

from harness.analyse.forms import BAR, KNOWN, NAMED_STEP, PAIR, STEP, take_apart

_WORDS = (b"val", b"Val", b"VAL", b"est", b"eld")
# A remark repeats a value of another step.
_REMARK = re.compile(rb"(?i)(?<![a-z])(?:best|lowest|minimum|patience|early)")
_BAR_OF_OTHERS = re.compile(
    rb"(?i)\A[ \t]{0,8}+(?:val|valid|validation|validat(?:e|ing)|eval|evaluat(?:e|ing|ion)|test(?:ing)?)"
    rb"(?![a-z0-9_])[^|\d%]{0,80}+\d{1,3}+%\|"
)


class After:
    """A giver of steps, from one list of lines to the next."""

    def __init__(self) -> None:
        self._last = b""

    def apply(self, lines: list[bytes], joined: bytes) -> list[bytes]:
        """The same lines, with `step=N` before each held-out loss that has none. `joined`: all of them."""
        out = lines
        some = any(word in joined for word in _WORDS)
        for index, line in enumerate(lines if some else ()):
            if b"oss" not in line or not any(word in line for word in _WORDS) or STEP.search(line):
                continue
            loss = _loss_of(line)
            if loss is None:
                continue
            if out is lines:
                out = list(lines)
            step = self._step_before(lines, index) if loss else b""
            out[index] = b"step=%b eval_loss=%b" % (step, loss) if step else b""
        self._last = self._step_before(lines, len(lines))
        return out

    def _step_before(self, lines: list[bytes], end: int) -> bytes:
        for line in reversed(lines[:end]):
            if b"oss" in line and not _BAR_OF_OTHERS.search(line) and (apart := take_apart(line)):
                form, values = apart
                if "loss" in form.fields:
                    return values[form.fields.index("step")]
        return self._last


def _loss_of(line: bytes) -> bytes | None:
    """The held-out loss of a line without a step. Empty for a bar that is not at its end, None for others."""
    bar = BAR.search(line)
    if bar is not None and _BAR_OF_OTHERS.search(line):
        pairs = [(KNOWN.get(pair[1].decode().lower()), pair[2]) for pair in PAIR.finditer(line, bar.end())]
        loss = next((value for name, value in pairs if name in ("loss", "held_out")), None)
        return loss if loss is not None and bar[1] == bar[2] else b""
    if bar is not None or NAMED_STEP.search(line) or _REMARK.search(line):
        return None
    known = [(KNOWN.get(pair[1].decode().lower()), pair[2]) for pair in PAIR.finditer(line)]
    if any(name == "loss" for name, _ in known):
        return None
    return next((value for name, value in known if name == "held_out"), None)
