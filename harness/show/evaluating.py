"""The progress of an evaluation on stderr: a bar a suite on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from harness.show.progress import Progress
from harness.units import format_seconds

if TYPE_CHECKING:
    from harness.artifacts.evaluation import Rate

# Elsewhere than on a terminal: the seconds between two lines.
_LINE_S = 30.0


class Evaluating(Progress):
    """The console of `harness evaluate`. Used as a context, so that its bars end with it."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said = 0.0

    def __enter__(self) -> Evaluating:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def measured(self, done: int, asked: int, rates: list[Rate], left_s: float | None) -> None:
        """Shows the rates of each suite, of `done` episodes of `asked`."""
        left = "" if left_s is None or done >= asked else f", {format_seconds(left_s)} left"
        if self._console.is_terminal:
            for rate in rates:
                self._bar_of(rate, left if rate is rates[-1] else "")
            return
        now = time.monotonic()
        if now - self._said >= _LINE_S or done >= asked:
            self._said = now
            shown = "; ".join(f"{rate.suite} {rate_words(rate)}" for rate in rates if rate.measured)
            self.say(f"{done:,} of {asked:,} episodes: {shown or 'none measured'}{left}")

    def _bar_of(self, rate: Rate, left: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[rate]}", markup=False),
            )
            self._bars = Bars(*columns, console=self._console)
            self._bars.start()
        if rate.suite not in self._tasks:
            self._tasks[rate.suite] = self._bars.add_task(
                rate.suite, total=rate.measured + rate.errors + rate.missing, rate=""
            )
        self._bars.update(
            self._tasks[rate.suite],
            completed=rate.measured + rate.errors,
            rate=f"{rate_words(rate)}{left}",
        )


def rate_words(rate: Rate) -> str:
    """A rate with its interval, and what could not be measured."""
    errors = f", {rate.errors} not measured" if rate.errors else ""
    if rate.rate is None:
        return f"no outcome yet{errors}"
    low, high = 100 * rate.interval.low, 100 * rate.interval.high
    return f"{rate.successes}/{rate.measured} {100 * rate.rate:.1f} % ({low:.1f} to {high:.1f}){errors}"
