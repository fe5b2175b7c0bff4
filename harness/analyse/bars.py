"""Reader of progress bars (tqdm): the step, the time since the start, and the rate of each state."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_MOST = 20_000
_STATE = re.compile(
    rb"(?<![\d.])(\d{1,15}+)/(\d{1,15}+) \[(?:(\d{1,6}+):)?(\d{1,6}+):(\d\d)<(?:[^,\]\n]{1,20}+,"
    rb" {1,4}+([\d.]{1,12}+)(it/s|s/it))?"
)
_RATE = re.compile(rb"rate:([\d.]{1,12}+)(it/s|s/it)")


class States(NamedTuple):
    """States of the bar that counts the steps, [N] each, in the order of the file."""

    step: Floats
    seconds: Floats
    shown_step_s: Floats


class Bars:
    """A collector of the bars' states in lines. Of very many it keeps some, spread over the log."""

    def __init__(self) -> None:
        self._states: list[tuple[bytes, ...]] = []
        self._stride = 0
        self.rates: list[float] = []

    def take(self, lines: list[bytes], joined: bytes) -> int:
        """The number of states in these lines, which it reads. `joined` is the same lines as one text."""
        if b"rate:" in joined and len(self.rates) < _MOST:
            rates = [(float(rate), unit) for rate, unit in _RATE.findall(joined) if _is_number(rate)]
            self.rates += [1 / rate if unit == b"it/s" else rate for rate, unit in rates if rate > 0]
        some = b"\n".join(lines[: 1 + len(lines) // (1 + self._stride)]) if self._stride else joined
        self._states += _STATE.findall(some)
        while len(self._states) > _MOST:
            self._states, self._stride = self._states[::2], 2 * self._stride + 1
        return joined.count(b"it/s") + joined.count(b"s/it")

    def of_training(self) -> States:
        """The states of the most frequent bar. Other bars count files or batches."""
        if not self._states:
            return States(np.empty(0), np.empty(0), np.empty(0))
        total = Counter(state[1] for state in self._states).most_common(1)[0][0]
        cells = [state for state in self._states if state[1] == total]
        table = np.array([[float(cell or 0) for cell in (state[0], *state[2:5])] for state in cells])
        shown = [float(rate) if _is_number(rate) and float(rate) > 0 else np.nan for *_, rate, _ in cells]
        inverse = np.array([unit == b"it/s" for *_, unit in cells])
        rates = np.where(inverse, 1 / np.array(shown), np.array(shown))
        return States(table[:, 0], table[:, 1:] @ np.array([3600.0, 60.0, 1.0]), rates)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
