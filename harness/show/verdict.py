"""A verdict as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from harness.artifacts.verdict import Verdict
from harness.show.rows import Cells

_STYLE = {"equal": "green", "differs": "bold red", "cannot tell": "yellow"}
_WIDTH = 34


def verdict_table(verdict: Verdict) -> Cells:
    """Every field with its status, the replay, the verdict, and the first difference.

    The first difference explains the others.
    """
    table = Cells(f"{verdict.run} against {verdict.against}")
    table.show_header = True
    for name in ("field", "status", "recorded", "found"):
        table.column(name)
    for row in verdict.fields:
        status = row.status if row.matters or row.status == "equal" else f"{row.status} (changes nothing)"
        style = _STYLE[row.status] if row.matters else "dim"
        found = [_short(row.found), row.note if row.recorded else ""]
        table.row(
            row.field,
            status,
            _short(row.recorded) or row.note,
            "; ".join(part for part in found if part),
            style=style,
        )
    if verdict.replay is not None:
        replay = verdict.replay
        what = f"{replay.steps} steps from {replay.start} on {replay.device}"
        table.row(
            "metrics",
            replay.status,
            replay.first or what,
            replay.note if replay.first is None else what,
            style=_STYLE[replay.status],
        )
    table.add_section()
    explains = verdict.first_difference or ""
    table.row(
        "verdict",
        verdict.verdict,
        explains and f"first difference: {explains}",
        "",
        style=_STYLE[verdict.verdict],
    )
    return table


def _short(text: str | None) -> str:
    if text is None:
        return ""
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
