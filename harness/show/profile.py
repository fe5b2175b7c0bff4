"""A profile as tables: the parts of a step by pass, what the device waited, and the longest kernels."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Group, RenderableType

from harness.artifacts import Profile, ProfileRow
from harness.show.rows import Cells, line, rows_table
from harness.units import format_seconds

_TURNS = ("forward", "recomputed", "backward")


def profile_view(found: Profile) -> RenderableType:
    """The step's seconds, its parts, and its longest kernels."""
    notes = [
        f"note: the rows are the time of all threads together, in a step of {format_seconds(found.step_s)}"
    ]
    if found.platform != "cpu":
        notes = ["note: with the profiler a step takes longer than without, the more the shorter its kernels"]
    return Group(
        rows_table("profile", _facts(found)),
        _parts(found),
        _kernels(found),
        *(line(note) for note in notes),
    )


def _facts(found: Profile) -> list[tuple[str, str]]:
    last = found.first_step + found.steps - 1
    several = f", {found.devices} devices" if found.devices > 1 else ""
    rows = [
        ("steps", f"{found.first_step} to {last}, batch {found.batch}"),
        ("device", found.device + several),
        ("a step", format_seconds(found.step_s)),
    ]
    rows.append(("device idle", f"{max(0.0, 1 - found.busy_s / found.step_s):.0%} of the step"))
    if found.link_s:
        hidden = 1 - found.link_alone_s / found.link_s
        rows.append(
            ("host copies", f"{format_seconds(found.link_s)}, {hidden:.0%} of it while something computes")
        )
    return [*rows, ("trace", found.trace)]


def _parts(found: Profile) -> Cells:
    unit, scale = ("GFLOP/s", 1e9) if found.platform == "cpu" else ("TFLOP/s", 1e12)
    table = Cells("", ("ms a step", "all", "share", *_TURNS, unit, "GB/s"))
    parts: dict[str, list[ProfileRow]] = defaultdict(list)
    for row in found.rows:
        parts[row.part].append(row)
    whole = sum(row.seconds for row in found.rows) or 1.0
    for part, rows in sorted(parts.items(), key=lambda item: -sum(row.seconds for row in item[1])):
        seconds = sum(row.seconds for row in rows)
        turns = {row.turn: row.seconds for row in rows}
        operations, moved = sum(row.operations for row in rows), sum(row.bytes for row in rows)
        table.row(
            part,
            _ms(seconds),
            f"{seconds / whole:.1%}",
            *(_ms(turns[turn]) if turns.get(turn) else "" for turn in _TURNS),
            f"{operations / seconds / scale:.1f}" if operations and seconds else "",
            f"{moved / seconds / 1e9:.1f}" if moved and seconds else "",
        )
    return table


def _kernels(found: Profile) -> Cells:
    table = Cells("")
    table.show_header = True
    table.column("longest kernels")
    table.column("ms a step", right=True)
    table.column("launches", right=True)
    table.column("of")
    for each in found.kernels:
        of = ", ".join(word for word in (each.source or each.part, each.turn) if word)
        table.row(each.name, _ms(each.seconds), f"{each.launches:,.0f}", of)
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"
