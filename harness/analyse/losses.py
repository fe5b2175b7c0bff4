"""The loss of a log that has none of a plain name, as `mse_loss` alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.analyse.forms import KNOWN

_PARTS = re.compile(r"[_/. -]")
_LOSS = re.compile(r"(?:[A-Za-z][\w/.]{0,60}+(?<=[_/.][lL]oss)|[lL]oss[_/][A-Za-z]\w{0,40}+)\Z")
# `loss_scale` is no loss.
_SETTINGS = frozenset(
    [
        "scale",
        "scaler",
        "weight",
        "weights",
        "coef",
        "coeff",
        "fn",
        "ratio",
        "mask",
        "rate",
        "type",
        "norm",
        "step",
        "time",
    ]
)
_HELD_OUT = frozenset(("val", "valid", "validation", "eval", "evaluation", "test", "dev", "heldout"))
_TRAINED = frozenset(("train", "training"))


def one_loss(names: Iterable[str]) -> tuple[str | None, str | None]:
    """(the name of the training loss, that of the held-out one). None where none or several may be meant."""
    losses = [name for name in dict.fromkeys(names) if _is_loss(name)]
    trained = _nearest([name for name in losses if not _parts(name) & _HELD_OUT])
    if trained is None:
        return None, None
    beside = [name for name in losses if _parts(name) & _HELD_OUT]
    of_same = [name for name in beside if _parts(name) - _HELD_OUT == _parts(trained) - _TRAINED]
    return trained, of_same[0] if len(of_same) == 1 else None


def _is_loss(name: str) -> bool:
    return name.lower() not in KNOWN and bool(_LOSS.match(name)) and not _parts(name) & _SETTINGS


def _nearest(names: list[str]) -> str | None:
    # `VLA_Train/Loss` is nearer to a plain loss than `VLA_Train/L1_Loss`.
    found = [name for name in names if name.lower().endswith("/loss")] or names
    return found[0] if len(found) == 1 else None


def _parts(name: str) -> set[str]:
    return set(_PARTS.split(name.lower()))
