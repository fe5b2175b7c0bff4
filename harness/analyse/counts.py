"""Rates and counts of steps in other words, rewritten as the reader of lines knows them."""

from __future__ import annotations

import re

from harness.analyse.forms import STEP

# Two words, as Megatron and people write them.
_TWO_WORDS = re.compile(
    rb"(?i)(?<![\w/])(learning|grad|gradient) (rate|norm)(?=[\"'`]?(?:[ \t]{0,4}+[=:]| \d))"
)
_SECOND_WORDS = (b"ing rate", b"ing Rate", b"d norm", b"d Norm", b"t norm", b"t Norm")
# A list of the rates of groups, of which the first counts.
_RATES = re.compile(
    rb"(?<!\w)((?:lr|learning_rate)[\"'`]?[ \t]{0,2}+[=:][ \t]{0,2}+)"
    rb"\[[ \t]{0,2}+([-+\w.]{1,40}+)[^\]\r\n]{0,400}+\]"
)
# Lightning names a rate by its optimizer.
_OF_LIGHTNING = re.compile(rb"\"lr-[A-Z]\w{1,40}+(?:/pg1)?+\"(?=: )")
# Words before `step` that make it another count than that of the trained steps.
_OTHERS = (
    *(word + end for word in (b"max", b"total", b"micro", b"env", b"per") for end in (b"_", b" ")),
    *(b"time/", b"ms/", b"sec/", b" s/"),
)
_BEFORE_STEP = (b"_step", b" step", b"/step")
_OTHER_WORDS = (
    *(end + b"step" for end in (b"x_", b"x ", b"l_", b"l ", b"o_", b"o ", b"v_", b"v ", b"r ")),
    *(b"s/step", b"e/step", b"c/step"),
)


def rates(text: bytes) -> bytes:
    """The text with `lr` and `grad_norm` for their other spellings."""
    if any(word in text for word in _SECOND_WORDS):
        text = _TWO_WORDS.sub(rb"\1_\2", text).replace(b"gradient_norm", b"grad_norm")
    if b"[" in text and (b"lr" in text or b"learning_rate" in text):
        text = _RATES.sub(rb"\1\2", text)
    return _OF_LIGHTNING.sub(b'"lr"', text) if b'"lr-' in text else text


def of_the_run(lines: list[bytes], text: bytes) -> list[bytes]:
    """The lines without other counts before the step: `max_step: 100, step: 5`. `text`: all of them."""
    # Most logs have none of the first, which are looked for more quickly.
    if not any(word in text for word in _BEFORE_STEP) or not any(word in text for word in _OTHER_WORDS):
        return lines
    return [_of_the_run(line) if b"oss" in line else line for line in lines]


def _of_the_run(line: bytes) -> bytes:
    for found in list(STEP.finditer(line))[:-1]:
        if not line.lower().endswith(_OTHERS, 0, found.start()):
            break
        line = line[: found.start()] + b"stop" + line[found.start() + len(b"step") :]
    return line
