"""A launch as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group, RenderableType

from harness.artifacts.launched import Launched
from harness.show.rows import Cells, line


def launched_table(launched: Launched) -> RenderableType:
    """The files, and how they are started."""
    table = Cells(f"{launched.engine}, {launched.hosts} hosts")
    for _ in range(2):
        table.column()
    devices = f"{launched.gpus} GPUs a host" if launched.gpus else "CPUs"
    table.row("run", launched.run)
    table.row("recipe", f"{launched.recipe}, {devices}")
    if launched.plan:
        table.row("plan", launched.plan)
    if launched.job:
        table.row("job", f"{launched.job} {launched.state or ''}".strip())
    lines = [f"written  {path}" for path in launched.files]
    if not launched.job:
        lines += [f"start    {command}" for command in launched.start]
    return Group(table, *(line(each) for each in lines))
