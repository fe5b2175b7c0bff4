"""The fetched parts as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import RenderableType

from harness.artifacts import Fetched
from harness.show.rows import rows_table
from harness.units import format_bytes


def fetched_view(fetched: Fetched) -> RenderableType:
    """Each part with its size and path."""
    rows: list[tuple[str, str]] = [
        (part.what, f"{part.source}: {format_bytes(part.bytes)} in {part.path}") for part in fetched.parts
    ]
    return rows_table(f"here for {fetched.recipe}", rows)
