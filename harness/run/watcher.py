"""Watcher: the callbacks through which a run reports its progress."""

from __future__ import annotations

from typing import Protocol

from harness.artifacts import Metrics


class Watcher(Protocol):
    """Receives messages, warnings, phases and logged steps of a run.

    The phases are start, init, compile, load, restore, step, save and held-out pass.
    """

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def phase(self, name: str) -> None: ...

    def step(self, line: Metrics, steps: int) -> None: ...
