"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol

from harness.artifacts import Metrics


class Watcher(Protocol):
    """`phase` is where the trainer is: start, compile, load, restore, step or save."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def phase(self, name: str) -> None: ...

    def step(self, line: Metrics, steps: int) -> None: ...
