"""Lines that say beside their loss, and not in its name, that it is the one of a validation set."""

from __future__ import annotations

import re

from harness.analyse.forms import KNOWN, PAIR, STEP

_NAMES = rb"(?:eval|evaluation|val|validation)"
# `[eval] Step 5: loss=0.4`, `val | step 5 | loss 0.4`; no file `eval.py`, no value `val: 0.4`.
_MARK = re.compile(
    rb"(?i)(?<![A-Za-z0-9_./-])" + _NAMES + rb"(?![A-Za-z0-9_./=-])(?![ \t]{0,4}+[:|]?[ \t]{0,4}+[\d.+-])"
)
# The same of a record of JSON.
_SPLIT = re.compile(
    rb"(?i)\"(?:split|phase|mode|stage)\": {0,4}+\"(?:eval|evaluation|val|validation|valid|test)\""
)
# A program may be called test and a machine dev, so these are marks only where other lines do not have them.
# `validate step: 5  loss: 0.4` is torchtitan's.
_TEST = re.compile(
    rb"(?i)\[(?:test|valid)\]|(?:\A|[\]|] )(?:test|valid) ?[:|] "
    rb"|(?<![A-Za-z0-9_./-])(?:(?:validat|evaluat)(?:e|ed|ing)|held[-_ ]?out|(?:test|valid|dev)(?= step))"
    rb"(?![A-Za-z0-9_./=(-])(?![ \t]{0,4}+[:|]?[ \t]{0,4}+[\d.+-])"
)
_TEST_WORDS = (b"est", b"EST", b"alid", b"ALID", b"valua", b"VALUA", b"eld", b"ELD", b"dev", b"Dev", b"DEV")
_TRAINED = {name.encode() for name, value in KNOWN.items() if value == "loss"}
# A counter of a validation's batches, not of trained steps: mmengine's `Epoch(val) [1][5/5]`.
_OWN_COUNTER = re.compile(rb"(?i)(?:epoch|iter)\((?:val|test)\)")


def held_out_named(lines: list[bytes], joined: bytes) -> list[bytes]:
    """The same lines, with `eval_loss` for the loss of marked ones. `joined`: all of them as one text."""
    tested = any(word in joined for word in _TEST_WORDS)
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


def counts_alone(line: bytes) -> bool:
    """True for a line of a held-out loss: where its count goes back, it counts batches of its own."""
    if b"eval_loss" in line:
        return not any(pair[1].lower() in _TRAINED for pair in PAIR.finditer(line))
    return bool(_OWN_COUNTER.search(line) or _SPLIT.search(line) or _MARK.search(line))
