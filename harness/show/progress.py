"""The progress of a run, on a terminal and elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.received.text import visible

if TYPE_CHECKING:
    from harness.artifacts import Finding, Metrics

_AT_WORK = {"save": "saving a checkpoint", "held-out pass": "measuring held-out episodes"}
_STYLE = {"error": "bold red", "warning": "yellow", "unknown": "cyan"}


class Progress:
    """The progress of a run on stderr: a bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Any = None
        self._task: Any = None
        self._recent: deque[float] = deque(maxlen=20)
        self._losses: deque[float] = deque(maxlen=24)

    def __enter__(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if self._console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", "yellow")

    def finding(self, finding: Finding) -> None:
        """Prints a finding of the doctor, styled by its severity, with its fix on its own line."""
        self._line(f"{finding.severity}: {finding.check}: {finding.got}", _STYLE[finding.severity])
        self._line(f"  need: {finding.need}")
        self._line(f"  fix:  {finding.fix}")

    def _line(self, text: str, style: str = "") -> None:
        """Prints a text that may be a stranger's. No markup and no control character in it has effect."""
        from rich.text import Text

        self._console.print(Text(visible(text), style=style))

    def phase(self, name: str) -> None:
        if self._bar is not None and self._task is not None and name in _AT_WORK:
            self._bar.update(self._task, description=_AT_WORK[name])

    def step(self, line: Metrics, steps: int) -> None:
        from harness.units import format_seconds

        self._recent.append(line.step_s)
        pace = sorted(self._recent)[len(self._recent) // 2]
        left = format_seconds(pace * (steps - line.step - 1))
        text = (
            f"loss {line.loss:.4f}  grad_norm {line.grad_norm:.3f}  {format_seconds(pace)} a step  {left}"
            " left"
        )
        if self._bar is None:
            self._line(f"step {line.step + 1}/{steps}  {text}")
            return
        from harness.show.status import sparkline

        self._losses.append(line.loss)
        text = f"{sparkline(list(self._losses))}  {text}"
        if self._task is None:
            self._task = self._bar.add_task(text, total=steps)
        self._bar.update(self._task, completed=line.step + 1, description=text)


@contextmanager
def busy(text: str) -> Iterator[None]:
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(visible(text))):
        yield


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Like `busy`; yields a function that changes the text. Without a terminal each new text is a line."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if console.is_terminal:
        with console.status(Text(visible(text))) as status:
            yield lambda new: status.update(Text(visible(new)))
        return
    said = [text]

    def line(new: str) -> None:
        if new != said[-1]:
            said.append(new)
            console.print(Text(visible(new)))

    yield line
