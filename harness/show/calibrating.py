"""The progress of a calibration on stderr: a bar of its time on a terminal, lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.received.text import visible
from harness.units import format_seconds

if TYPE_CHECKING:
    from harness.artifacts import CalibrationStage

_STYLES = {"measured": "green", "skipped": "cyan", "failed": "bold red", "timeout": "yellow"}


class Calibrating:
    """What a calibration does, and how much of its time is left."""

    def __init__(self, minutes: float) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._seconds = 60 * minutes
        self._bar: Any = None
        self._task: Any = None
        self._at = ""

    def __enter__(self) -> Calibrating:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("calibrating", total=self._seconds, left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, stage: Any, number: int, of: int, left_s: float) -> None:
        self._at = f"{number}/{of} {stage.title}"
        if self._bar is None:
            self.say(f"{self._at} ({_left(left_s)})")
        self._move(self._at, left_s)

    def doing(self, text: str, left_s: float) -> None:
        if self._bar is None:
            self.say(f"  {text}")
        self._move(f"{self._at}: {visible(text)}", left_s)

    def done(self, stage: CalibrationStage) -> None:
        words = stage.reason or "; ".join(stage.marks)
        took = "" if stage.wall_s is None else f" in {format_seconds(stage.wall_s)}"
        self.say(f"{stage.name}: {stage.state}{took}{f': {words}' if words else ''}", _STYLES[stage.state])

    def say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(visible(text), style=style))

    def _move(self, text: str, left_s: float) -> None:
        if self._bar is not None:
            done = max(0.0, self._seconds - left_s)
            self._bar.update(self._task, description=text, completed=done, left=_left(left_s))


def _left(seconds: float) -> str:
    return f"{format_seconds(max(0.0, seconds))} left"
