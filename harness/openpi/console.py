"""The console output of openpi's trainer, read as lines of metrics and as phases.

Every `log_interval` steps upstream logs, with four digits, the mean over the steps since its last line. Our
line says over how many. Upstream's step counts from 0 and is done when it is logged. Source: openpi
scripts/train.py `main`, commit 15a9616.
"""

from __future__ import annotations

import math
import re

import numpy as np

from harness.analyse.schedule import learning_rate
from harness.artifacts import Metrics
from harness.recipe.schema import Recipe

_STEP = re.compile(r"\bStep (\d+): ((?:[\w/]+=\S+)(?:, [\w/]+=\S+)*)\s*$")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NEEDED = ("loss", "grad_norm", "param_norm")
# Upstream's message → the phase that begins with it. The first step compiles.
_PHASES = {
    "Running on: ": "start",
    "Initialized data loader": "load",
    "Initialized train state": "compile",
    "Waiting for checkpoint manager": "save",
}


class Console:
    """A reader of upstream's console output, line by line.

    `start` is the step at which upstream begins. `next_step` follows the last step that it logged.
    """

    def __init__(self, recipe: Recipe, *, start: int) -> None:
        self._schedule, self.next_step = recipe.train.optimizer.schedule, start
        self._since: float | None = None
        self.phase = "import"

    def read(self, text: str, now: float) -> Metrics | None:
        """The line of metrics in `text`, or None. `now` is the clock's time."""
        for mark, phase in _PHASES.items():
            if mark in text:
                self.phase = phase
                self._since = now if phase == "compile" else self._since
        values = step_values(text)
        if values is None:
            return None
        step, logged = values
        if step < self.next_step:
            return None
        # If upstream does not say when it began, the duration of the first line is unknown and counts as 0.
        steps, since = step + 1 - self.next_step, now if self._since is None else self._since
        self.phase, self.next_step, self._since = "step", step + 1, now
        rate = float(learning_rate(self._schedule, np.array([float(step)]))[0])
        return Metrics(
            step=step,
            **logged,
            learning_rate=rate,
            step_s=(now - since) / steps,
            time=now,
            mean_of_steps=steps,
        )


def step_values(text: str) -> tuple[int, dict[str, float]] | None:
    """(step, {loss, grad_norm, param_norm}) of one of upstream's lines. None for any other line.

    NaN and infinity are kept.
    """
    match = _STEP.search(_ANSI.sub("", text))
    if match is None:
        return None
    try:
        values = {
            name: float(value) for name, _, value in (pair.partition("=") for pair in match[2].split(", "))
        }
    except ValueError:
        return None
    return (
        (int(match[1]), {name: values[name] for name in _NEEDED}) if set(_NEEDED) <= values.keys() else None
    )


def is_finite(line: Metrics) -> bool:
    return all(math.isfinite(value) for value in (line.loss, line.grad_norm, line.param_norm))
