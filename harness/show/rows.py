"""The cells, lines and rows of every table.

A cell is text and nothing else. No markup is read in it, no character of it steers a terminal, and none is
cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.received.text import visible


def cell(value: object, style: str = "") -> Text:
    """`value` as it stands, folded if it is too long."""
    return Text(visible(str(value)), style=style, overflow="fold")


def line(value: object, style: str = "") -> Text:
    """A line that is never broken, so that a command in it can be copied whole.

    That holds also in a pipe, whose width counts as 80 columns.
    """
    return Text(visible(str(value)), style=style, no_wrap=True, overflow="ignore")


class Cells(Table):
    """A table without a frame whose cells, headings, title and caption are text."""

    def __init__(
        self,
        title: str = "",
        columns: Iterable[str] = (),
        *,
        framed: bool = False,
        min_width: int | None = None,
    ) -> None:
        """Makes a table. `columns` are headings: the first one is aligned left, the others right."""
        look = {} if framed else {"box": None, "pad_edge": False}
        super().__init__(
            title_justify="left",
            caption_justify="left",
            show_header=bool(columns),
            min_width=min_width,
            **look,  # type: ignore[arg-type]
        )
        self.title = cell(title, "italic") if title else None
        for number, name in enumerate(columns):
            self.column(name, right=number > 0)

    def column(
        self,
        heading: str = "",
        *,
        right: bool = False,
        style: str = "",
        whole: bool = False,
        max_width: int | None = None,
    ) -> None:
        """Adds a column. `whole`: its cells are short and never folded."""
        self.add_column(
            cell(heading),
            justify="right" if right else "left",
            style=style,
            no_wrap=whole,
            overflow="fold",
            max_width=max_width,
        )

    def row(self, *values: object, style: str = "") -> None:
        """Adds a row."""
        self.add_row(*(value if isinstance(value, Text) else cell(value) for value in values), style=style)

    def note(self, text: str) -> None:
        """Puts a caption below."""
        self.caption = cell(text, "dim italic") if text else None


class Row(NamedTuple):
    """A name and its text. `whole`: a line of its own that is never broken, since it holds a command."""

    name: str
    text: str
    style: str = ""
    whole: bool = False


def rows_table(title: str, rows: Iterable[tuple[str, str] | Row]) -> Group:
    """Names and their texts, one below the other."""
    every = [row if isinstance(row, Row) else Row(*row) for row in rows]
    width = max((cell(row.name).cell_len for row in every), default=0)
    parts: list[RenderableType] = [cell(title, "italic")] if title else []
    for row in every:
        if row.whole:
            parts.append(line(f"{row.name.ljust(width)}  {row.text}", row.style))
            continue
        if not parts or not isinstance(parts[-1], Cells):
            table = Cells()
            table.add_column(style="bold", no_wrap=True, min_width=width)
            table.add_column(overflow="fold")
            parts.append(table)
        parts[-1].row(row.name, row.text, style=row.style)  # type: ignore[union-attr]
    return Group(*parts)


def finding_rows(
    severity: str, text: str, style: str, *, need: str = "", fix: str | None = None
) -> list[Row]:
    """The rows of a finding: its text, what it needs, and its fix."""
    rows = [Row(severity, text, style)]
    rows += [Row("  need", need)] if need else []
    return rows + ([Row("  fix", fix, whole=True)] if fix else [])


def known(value: object, unknown: dict[str, str], field: str) -> str:
    return f"unknown ({unknown.get(field, 'no reason given')})" if value is None else str(value)
