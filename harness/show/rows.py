"""What the tables share."""

from __future__ import annotations

from rich.table import Table


def rows_table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def known(value: object, unknown: dict[str, str], field: str) -> str:
    return f"unknown ({unknown.get(field, 'no reason given')})" if value is None else str(value)
