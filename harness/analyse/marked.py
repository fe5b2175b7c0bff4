"""Lines that say beside their loss, and not in its name, that it is the one of a validation set."""

from __future__ import annotations

import re

from harness.analyse.forms import PAIR, STEP

_NAMES = rb"(?:eval|evaluation|val|validation)"
# `[eval] Step 5: loss=0.4`, `val | step 5 | loss 0.4`; no file `eval.py`, no value `val: 0.4`.
_MARK = re.compile(
    rb"(?i)(?<![A-Za-z0-9_./-])" + _NAMES + rb"(?![A-Za-z0-9_./=-])(?![ \t]{0,4}+[:|]?[ \t]{0,4}+[\d.+-])"
)
# The same of a record of JSON.
_SPLIT = re.compile(
    rb"(?i)\"(?:split|phase|mode|stage)\": {0,4}+\"(?:eval|evaluation|val|validation|valid|test)\""
)
# A program may be called test, so this is a mark only where other lines do not have it.
_TEST = re.compile(rb"(?i)\[(?:test|valid)\]|(?:\A|[\]|] )(?:test|valid) ?[:|] ")


def held_out_named(lines: list[bytes], joined: bytes) -> list[bytes]:
    """The same lines, with `eval_loss` for the loss of marked ones. `joined`: all of them as one text."""
    tested = any(word in joined for word in (b"est", b"EST", b"alid", b"ALID"))
    if not tested and not any(word in joined for word in (b"val", b"Val", b"VAL")):
        return lines
    loss = [line for line in lines if b"oss" in line and STEP.search(line)] if tested else []
    tested = any(_TEST.search(line) for line in loss) and not all(_TEST.search(line) for line in loss)
    return [_named(line, tested=tested) if b"oss" in line else line for line in lines]


def _named(line: bytes, *, tested: bool) -> bytes:
    split = _SPLIT.search(line)
    mark = split or _MARK.search(line) or (_TEST.search(line) if tested else None)
    if mark is None or not STEP.search(line):
        return line
    pair = next((pair for pair in PAIR.finditer(line) if pair[1].lower() == b"loss"), None)
    # A word behind the loss is a remark.
    if pair is None or (split is None and mark.start() > pair.start(1)):
        return line
    return line[: pair.start(1)] + b"eval_loss" + line[pair.end(1) :]
