"""A replay as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group, RenderableType

from harness.artifacts.replayed import Replayed
from harness.show.rows import Cells
from harness.show.verdict import verdict_table

_STYLE = {"equal": "green", "differs": "bold red", "cannot tell": "yellow"}
_MOST = 10


def replayed_table(replayed: Replayed) -> RenderableType:
    """The verdict from inside, the image, and what is not as it should be."""
    table = Cells(f"{replayed.run} in its own image")
    for _ in range(2):
        table.column()
    rows = [
        ("manifest names", replayed.content or "no image by its contents"),
        ("image", f"{replayed.image} ({replayed.origin})" if replayed.image else "none"),
        ("image holds", replayed.computed or "unknown"),
    ]
    for name, value in rows:
        table.row(name, value)
    for text in replayed.differences[:_MOST]:
        table.row("differs", text, style=_STYLE["differs"])
    if len(replayed.differences) > _MOST:
        table.row("differs", f"and {len(replayed.differences) - _MOST} more")
    if replayed.reason:
        table.row("reason", replayed.reason)
    elif replayed.first_difference:
        table.row("first difference", replayed.first_difference)
    table.row("verdict", replayed.verdict, style=_STYLE[replayed.verdict])
    return Group(*([verdict_table(replayed.inside)] if replayed.inside else []), table)
