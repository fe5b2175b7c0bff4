"""Says how far a save is while training waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from harness.units import format_bytes

# A save of less is done before a person would ask.
_EVERY_S = 10.0


class Pause:
    """Counts what was written of a step. It is told by several threads, and says so once in ten seconds."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._lock = threading.Lock()
        self._step, self._bytes, self._said = 0, 0, 0.0

    def wrote(self, step: int, count: int, of: int) -> None:
        """Adds `count` bytes of the `of` that the step has. Of several processes, each counts its own."""
        with self._lock:
            if step != self._step:
                self._step, self._bytes, self._said = step, 0, self._clock()
            self._bytes += count
            if self._clock() - self._said < _EVERY_S:
                return
            self._said = self._clock()
            self._say(
                f"saving step {step}: {format_bytes(self._bytes)} of {format_bytes(of)}, training waits"
            )
