"""Other trainers' spellings of steps and losses, rewritten as the reader of lines knows them.

Known are `step 100` and `loss 0.5`. Rewritten are `iter 100`, `tensor(0.5, device='cuda:0')`, `val loss 0.5`,
`Loss at step 100: 0.5`, `step 1.2k`, and a loss that stands before its progress bar.
"""

from __future__ import annotations

import re

from harness.analyse.counts import of_the_run, rates
from harness.analyse.foreign import in_english
from harness.analyse.forms import BAR, KNOWN, PAIR, STEP
from harness.analyse.losses import one_loss

_WRAPPED = re.compile(
    rb"(?<![\w.])(?:(?:np|jnp|numpy|torch)\.)?(?:tensor|Tensor|Array|DeviceArray|array|float(?:16|32|64))"
    rb"\([\[ ]{0,4}+([-+\w.]{1,40}+)[\] ]{0,4}+(?:, {0,2}+[a-z_][^()\n]{0,200}+)?\)"
)
_WRAPPERS = (b"ensor(", b"rray(", b"float16(", b"float32(", b"float64(")
_HELD_OUT = re.compile(
    rb"(?<![A-Za-z0-9_/.])(?i:eval|evaluation|val|valid|validation|test)"
    rb"(?:[ -](?i:set):?+(?: (?i:average|avg\.?|mean))?)?+[ -](?i:loss)(?![\w/])"
)
# A part of a loss, which is no plain loss: `value loss: 0.3`.
_PART = re.compile(
    rb"(?i)(?<![\w/.])(value|value_function|policy|surrogate|entropy|actor|critic|action|gripper|state|l1|l2|mse"
    rb"|kl|kld|reconstruction|recon|contrastive|auxiliary|aux|symmetry|box|cls|dfl|discriminator|generator"
    rb"|adversarial) (loss)(?=[\"'`]?(?:[ \t]{0,4}+[=:]|[ \t])[ \t]{0,4}+[-+.\d])"
)
_TWO_WORDS = (
    b" Loss",
    b"l loss",
    b"n loss",
    b"d loss",
    b"t loss",
    b"e loss",
    b"y loss",
    b"c loss",
    b"r loss",
    b"l1 loss",
    b"l2 loss",
    b"x loss",
    b"s loss",
)
# litgpt's `loss train: 0.5, val: 0.6`, where the second may be n/a.
_BOTH = re.compile(rb"(?<![\w/.])loss train: {1,4}+([-+\w.]{1,40}+), val: {1,4}+([-+\w./]{1,40}+)")
# What fairseq logs within an epoch, and its mean over the epoch.
_WITHIN, _MEANS = b"| train_inner |", re.compile(rb"(?m)(\| train \|[^\r\n]{0,200}?)(?:train_)?loss(?![\w])")
# timm's `Train: 2 [  50/1000 (  5%)]`, and the last of its lines of a test, with its mean.
_TIMM = re.compile(rb"Train: (\d{1,9}+) \[ {0,9}+(\d{1,9}+)/(\d{1,9}+) \( {0,3}+\d{1,3}+%\)\]")
_TIMM_TEST = re.compile(
    rb"Test(?: \((EMA)\))?+: \[ {0,9}+(\d{1,9}+)/ {0,9}+(\d{1,9}+)\]"
    rb"([^\r\nL]{0,200}+Loss: {1,9}+)[-+\w.]{1,20}+ \( {0,9}+([-+\w.]{1,20}+)\)"
)
# A name in JSON with blanks in it, as OpenVLA's `"VLA Train/L1 Loss"`, which is no plain loss.
_BLANKS = re.compile(rb"\"([A-Za-z][\w/]{0,60}+(?: [\w/.()-]{1,60}+){1,6}+)\"(?=: )")
_AT_STEP = re.compile(
    rb"[lL]oss at (?:[sS]tep|[iI]ter(?:ation)?) (\d[\d,]{0,20}+) {0,2}+[:=][ \t]{0,4}+([-+\w.]{1,40}+)"
)
_SMALL_K = re.compile(rb"(?<![A-Za-z0-9])([sS]tep[=: ]{1,3}+\d{1,9}+(?:\.\d{1,9}+)?+)k(?!\w)")
# `it`, `steps` and their like are words of sentences too, so they need a sign before their number.
_COUNTED = re.compile(
    rb"(?<![A-Za-z0-9_/.])(?:global[ _-]|current_|optimizer |train_|training |valid_|test_)?+"
    rb"(?:(?:iter(?:ation)?|Iter(?:ation)?|ITER(?:ATION)?|STEP|num_updates|[uU]pdate|[bB]atch)"
    rb"(?:\([a-z]{1,9}+\))?[\"'`]?[ \t]{0,4}+[=:#]?"
    rb"|(?:[iI]t|[iI]ters|[iI]terations|[sS]teps|[uU]pdates|[sS]tep(?= ?#))[\"'`]?[ \t]{0,4}+[=:#])"
    rb"[ \t]{0,8}+[\"'`\[(]?[ \t]{0,8}+(\d{1,15}+(?:,\d{3})*+(?:(?:\.\d{1,9}+)?+[KMBT](?!\w))?+)(?!\w|\.\w)"
)
_COUNTERS = (
    b"ter",
    b"TER",
    b"STEP",
    b"pdate",
    b"atch",
    b"teps",
    b"Step #",
    b"step #",
    b"it=",
    b"it:",
    b"It:",
)
_BEFORE_BAR = re.compile(rb"oss[^\r\n%]{0,200}+%\|")
# Megatron's line of a validation.
_MEGATRON = re.compile(
    rb"(?:validation|test) loss at iteration (\d{1,15}+)[^|\r\n]{0,80}+\| (?:lm )?loss value:"
)
_TRAINED, _OTHERS = rb"(?i:train|training)", rb"(?i:eval|val|valid|validation|test)"
# `Loss (train): 0.5`, `loss[val]=0.5`, `train.loss=0.5`.
_OF_TRAINED = re.compile(
    rb"(?<![\w/.])(?:[lL]oss ?[\[(]" + _TRAINED + rb"[\])]|" + _TRAINED + rb"\.loss(?!\w))"
)
_OF_OTHERS = re.compile(rb"(?<![\w/.])(?:[lL]oss ?[\[(]" + _OTHERS + rb"[\])]|" + _OTHERS + rb"\.loss(?!\w))")
# `New best loss: 0.1 at step 500` repeats a value of another line, or of another step.
_REMARK = re.compile(
    rb"(?<![A-Za-z0-9_])([bB]est|BEST|[lL]owest|[mM]inimum|[fF]inal)(?: "
    + _TRAINED
    + rb"| "
    + _OTHERS
    + rb")?"
    rb" (?i:loss)(?!\w)"
)
_REMARKS = (b"est ", b"EST ", b"mum ", b"inal ")
_OTHER_LOSS = re.compile(
    rb"(?<![\w/.])((?:[A-Za-z][\w/]{0,60}+(?<=[_/][lL]oss))|(?:[lL]oss[_/][A-Za-z]\w{0,40}+))(?=[\"'`]?[=: ])"
)


class Spelling:
    """A rewriter of lines. It keeps from one list of lines to the next whether the log names a plain loss."""

    def __init__(self) -> None:
        self._others: tuple[bytes | None, bytes | None] = (None, None)
        self._decided = self._within = False

    def apply(self, lines: list[bytes], joined: bytes) -> tuple[list[bytes], bytes]:
        """(the same lines, all of them as one text), each line in the known spelling."""
        text = self._in_words(joined)
        changed = text is not joined
        if changed:
            lines = text.split(b"\n")
        # The lines are looked at one by one only where one may be of interest: most are bars alone.
        if any(word in text for word in _COUNTERS) or (b"%|" in text and _BEFORE_BAR.search(text)):
            named = [_counted(line) if b"oss" in line else line for line in lines]
            changed, lines = changed or named != lines, named
        named = of_the_run(lines, text)
        changed, lines = changed or named is not lines, named
        if not self._decided:
            self._decide(lines)
        for name, plain in zip(self._others, (b"loss", b"eval_loss"), strict=True):
            if name is not None:
                changed, lines = True, [line.replace(name, plain) for line in lines]
        return lines, b"\n".join(lines) if changed else joined

    def _in_words(self, text: bytes) -> bytes:
        """The text with each word as the reader of lines knows it."""
        text = self._of_one_trainer(in_english(text))
        if b"loss at iteration" in text:
            text = _MEGATRON.sub(rb"step \1 eval_loss:", text)
        if b"oss(" in text or b"oss (" in text or b"oss[" in text or b"oss [" in text or b".loss" in text:
            text = _OF_OTHERS.sub(b"eval_loss", _OF_TRAINED.sub(b"loss", text))
        if any(word in text for word in _REMARKS):
            text = _REMARK.sub(rb"\1 value", text)
        if b"LOSS" in text:
            text = text.replace(b"LOSS", b"loss")
        if any(word in text for word in _WRAPPERS):
            text = _WRAPPED.sub(rb"\1", text)
        # Behind a comma, as most write it, a loss has no word before it.
        words = text.count(b" loss") > text.count(b", loss") or b" Loss" in text
        if words and any(word in text for word in _TWO_WORDS):
            text = _PART.sub(rb"\1_\2", _HELD_OUT.sub(b"eval_loss", text))
        if b"oss at " in text:
            text = _AT_STEP.sub(rb"step \1 loss \2", text)
        if b"tep" in text and b"k" in text:
            text = _SMALL_K.sub(rb"\1K", text)
        return text

    def _of_one_trainer(self, text: bytes) -> bytes:
        """The text, with the spellings that only one trainer has as others write them."""
        # The files of ms-swift, and Stable-Baselines3's progress.json.
        text = text.replace(b"step/max_steps", b"step").replace(b'"time/total_timesteps"', b'"step"')
        text = rates(text)
        if b"%)]" in text or b"Test" in text:
            text = _TIMM_TEST.sub(_of_timm, _TIMM.sub(rb"Epoch: [\1][\2/\3]", text))
        if b'"' in text and _BLANKS.search(text):
            text = _BLANKS.sub(lambda found: found[0].replace(b" ", b"_"), text)
        self._within |= _WITHIN in text
        if self._within and b"| train |" in text:
            text = _MEANS.sub(rb"\1value", text)
        return _BOTH.sub(rb"loss: \1, eval_loss: \2", text) if b"loss train:" in text else text

    def _decide(self, lines: list[bytes]) -> None:
        """A log without a plain loss may have one of another name, as `mse_loss`."""
        names: set[bytes] = set()
        for line in lines:
            if b"oss" not in line or not STEP.search(line):
                continue
            self._decided = True
            if any(KNOWN.get(pair[1].decode().lower()) == "loss" for pair in PAIR.finditer(line)):
                return
            names |= set(_OTHER_LOSS.findall(line))
        trained, held = one_loss(sorted(name.decode(errors="replace") for name in names))
        self._others = (trained.encode() if trained else None, held.encode() if held else None)


def _of_timm(found: re.Match[bytes]) -> bytes:
    return b"eval_loss: " + found[5] if found[2] == found[3] and not found[1] else b"Test"


def _counted(line: bytes) -> bytes:
    """The line, its count named a step, and what its progress bar describes behind the bar."""
    bar = BAR.search(line)
    if bar is not None:
        begin = line.rfind(b"%|", 0, bar.start())
        before = line[: max(begin, 0)].rstrip(b"0123456789")
        return line if b"oss" not in before or b"oss" in line[bar.end() :] else line + b" " + before
    return line if STEP.search(line) else _COUNTED.sub(rb"step \1", line, count=1)
