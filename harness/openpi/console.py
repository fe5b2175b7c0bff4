"""What openpi's trainer writes on its console, as the lines of metrics.jsonl and as phases.

Upstream logs every `log_interval` steps, with four digits, the mean over the steps since it last did; our
line says over how many. Its step counts from 0 and has been done when it is logged. Source: openpi
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
# What upstream logs, and what it does from there on. The first step compiles.
_PHASES = {
    "Running on: ": "start",
    "Initialized data loader": "load",
    "Initialized train state": "compile",
    "Waiting for checkpoint manager": "save",
}


class Console:
    """Takes what upstream writes line by line.

    `start` is the step that it begins with; `next_step` follows the last that it logged.
    """

    def __init__(self, recipe: Recipe, *, start: int) -> None:
        self._schedule, self.next_step = recipe.train.optimizer.schedule, start
        self._since: float | None = None
        self.phase = "import"

    def read(self, text: str, now: float) -> Metrics | None:
        """The line of metrics that `text` is, or None; `now` is the clock's time."""
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
        # Where upstream does not say when it began, the time of the first line is not known: as much as no
        # time has passed.
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
    """(step, loss, grad_norm and param_norm by name) of one of upstream's lines; NaN and infinity as they
    are. None for any other line.
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
