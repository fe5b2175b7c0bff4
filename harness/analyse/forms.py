"""The form of a line: which of its numbers are which values, and a pattern for similar lines.

Every pattern takes time that grows linearly with the length of its text. Runs are possessive, and begin only
where no character of the run stands before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

COLUMNS = (
    "step",
    "loss",
    "held_out",
    "grad_norm",
    "param_norm",
    "learning_rate",
    "step_s",
    "update_s",
    "data_s",
    "time",
    "samples",
)
_ALIASES = {
    "loss": (
        "loss train_loss train/loss training_loss avg_loss train/train_loss loss/train step_loss"
        " train_loss_step train/loss_step training/loss total_loss loss_total train/total_loss loss/total"
        " train_total_loss total_train_loss mean_loss loss_mean loss_avg average_loss lm_loss loss_train"
        " trainloss tr_loss avr_loss reduced_train_loss"
    ),
    "held_out": (
        "eval_loss eval/loss val_loss val/loss valid_loss valid/loss validation_loss validation/loss"
        " test_loss test/loss loss/val loss/eval eval/eval_loss heldout_loss held_out_loss loss_val loss_eval"
        " loss_valid loss/valid loss/test loss_test valloss"
    ),
    "grad_norm": "grad_norm train/grad_norm gradient_norm gnorm grdn train/grdn grad/norm total_grad_norm",
    "param_norm": "param_norm train/param_norm",
    "learning_rate": "learning_rate train/learning_rate train/lr lr train_lr train_learning_rate",
    "step_s": "step_s",
    # LeRobot's time of the update alone. The wait for the batch is logged beside it.
    "update_s": "updt_s update_s train/update_s",
    "data_s": "data_s dataloading_s train/dataloading_s",
    "time": "_timestamp",
    # wandb's seconds since the run's start. They are no clock: they begin at 0 and do not end at midnight.
    "runtime": "_runtime",
    "samples": "smpl samples train/samples",
}
KNOWN = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
# Names that mean the same below every other, as in `VLA_Train/Learning_Rate` and `optim/lr`.
_BELOW = {"learning_rate": "learning_rate", "lr": "learning_rate", "grad_norm": "grad_norm"}
_QUOTE = rb"[\"'`]?"
_GAP = rb"(?:[ \t]*+(?:::|=>|->|[=:])|[ \t])[ \t]*+"
_NUMBER = (
    rb"[-+]?(?:\d++(?:[.,]\d++)*+(?:[eE][-+]?\d++)?+|\.\d++(?:[eE][-+]?\d++)?+"
    rb"|[nN]a[nN]|[iI]nf(?:inity)?|null|None)"
)
# A looser form of the same. The conversion then rejects other words, which is several times faster.
_CELL = rb"[-+\w.]{1,64}+(?:,\d{1,20}+){0,8}+(?:\.\d{1,20}+)?+"
PAIR = re.compile(
    rb"(?<![\w/.])"
    + _QUOTE
    + rb"([A-Za-z_][\w/]*+)"
    + _QUOTE
    + _GAP
    + _QUOTE
    + rb"("
    + _NUMBER
    + rb"[KMBT]?+)(?!\w|\.\w)"
)
# `train_loss_step` is a loss and `time_per_step` a time.
_NO_STEP = rb"(?<!loss_)(?<!per_)"
STEP = re.compile(
    rb"(?<![A-Za-z0-9])"
    + _NO_STEP
    + rb"[sS]tep"
    + _QUOTE
    + _GAP
    + rb"[\"'`\[]?(\d++(?:,\d{3})*+(?:\.\d++)?+(?:[KMBT](?!\w))?+)(?:\.0++)?+(/\d++)?+(?!\w|\.\w)"
)
# A named step, whatever its value.
NAMED_STEP = re.compile(rb"(?<![A-Za-z0-9])" + _NO_STEP + rb"[sS]tep" + _QUOTE + rb"[ \t]{0,8}+[=:]")
BAR = re.compile(rb"(?<![\d.])(\d++)/(\d++) \[(?:(\d++):)?(\d++):(\d\d)<")
_PACE = re.compile(rb"(?:(?<!\d)(\d++) min )?(?<!h )(?<![\d.])(\d++(?:\.\d++)?+) s a step")
_CLOCK = rb"(?:(?<!\d)(\d{4}-\d\d-\d\d)[T ])?(?<![\d:])(\d\d:\d\d:\d\d(?:[.,]\d{1,6})?)"
_FIRST_CLOCK = re.compile(_CLOCK)
_PARTS = re.compile(rb"(\d++(?:[.,]\d++)*+(?:[eE][-+]?\d++)?+|[ \t]++)")


def known(name: str) -> str | None:
    """The value that a name in small letters means. None if it is none of ours."""
    return KNOWN.get(name) or _BELOW.get(name.rpartition("/")[2])


class Form(NamedTuple):
    """The form of a line. `fields` are in the order of the line; `pattern` has one group per field.

    `offset` is the number of the first step.
    """

    fields: tuple[str, ...]
    offset: int
    bar: bool
    pattern: bytes


class _Spot(NamedTuple):
    end: int
    name: str
    key: int


def take_apart(line: bytes) -> tuple[Form, tuple[bytes, ...]] | None:
    """(the form of this line, its values). None if it names no step or no loss."""
    bar = BAR.search(line)
    step = STEP.search(line, bar.end() if bar else 0) or (None if bar else STEP.search(line))
    if step is None and bar is None:
        return None
    is_json = line.lstrip().startswith(b"{")
    if is_json and step is not None and line.endswith(b'"_', 0, step.start()):
        # wandb's own _step counts the calls of its logger.
        step = next(_own_steps(line), step)
    spots = _pairs(line, bar.end() if bar else 0, is_json)
    if step is not None:
        spots[step.start(1)] = _Spot(step.end(1), "step", step.start())
    elif bar is not None:
        spots[bar.start(1)] = _Spot(bar.end(1), "step", bar.start(1))
    if (pace := _PACE.search(line)) and bar is None:
        spots[pace.start(2)] = _Spot(pace.end(2), "step_s", pace.start(2))
        if pace[1]:
            spots[pace.start(1)] = _Spot(pace.end(1), "step_min", pace.start(1))
    names = {spot.name for spot in spots.values()}
    if not names & {"loss", "held_out"}:
        return None
    clock = None if is_json or bar or step is None else _FIRST_CLOCK.search(line, 0, step.start())
    one_based = step is not None and step[2] is not None and b"a step" in line
    starts = sorted(spots)
    form = Form(
        fields=("date", "clock") * (clock is not None) + tuple(spots[start].name for start in starts),
        offset=int(one_based),
        bar=bar is not None,
        pattern=_pattern(line, spots, is_json, clock is not None),
    )
    values = tuple(line[start : spots[start].end] for start in starts)
    return form, (*((clock[1] or b"", clock[2]) if clock else ()), *values)


def _own_steps(line: bytes) -> Iterator[re.Match[bytes]]:
    """The steps that the trainer itself named global."""
    return (found for found in STEP.finditer(line) if line.endswith(b"global_", 0, found.start()))


def _pairs(line: bytes, begin: int, is_json: bool) -> dict[int, _Spot]:
    """The values that the line names, each once."""
    spots: dict[int, _Spot] = {}
    seen = {"step"}
    for pair in PAIR.finditer(line, begin):
        key = pair[1].decode().lower()
        name = "time" if is_json and key == "time" else known(key)
        # Only counts are printed with a unit.
        rounded = pair[2][-1:] in b"KMBT"
        if (
            name is not None
            and name not in seen
            and len(pair[2]) <= 64
            and (name == "samples" or not rounded)
        ):
            spots[pair.start(2)] = _Spot(pair.end(2), name, pair.start())
            seen.add(name)
    return spots


def _pattern(line: bytes, spots: dict[int, _Spot], is_json: bool, clock: bool) -> bytes:
    starts = sorted(spots)
    position = min(spot.key for spot in spots.values())
    # Only one search for a beginning is left open. With two, a long line would be searched once for each of
    # its bytes.
    pattern = rb"(?m)^" + (rb"(?>.*?" + _CLOCK + rb")" if clock else b"")
    if is_json:
        position = 0
    elif position == starts[0]:
        # A bar begins with its value. It is looked for once in a run of characters, not at each of them.
        pattern += rb".*?(?<![-+\w.])"
    else:
        pattern += rb".*?(?<![A-Za-z0-9])" if line[position : position + 1].isalnum() else rb".*?"
    for start in starts:
        pattern += _loosened(line[position:start]) + rb"(" + _CELL + rb")"
        position = spots[start].end
    return pattern + rb"(?!\w).*$"


def _loosened(text: bytes) -> bytes:
    """A pattern for `text`: its words as they are, any number for its numbers, any blanks for its blanks."""
    parts = _PARTS.split(text)
    return b"".join(
        (_NUMBER if part[:1].isdigit() else rb"[ \t]++") if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )
