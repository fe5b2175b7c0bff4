"""The choice among a run's saves as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts.choice import Choice, Interval, Mark, Switches
from harness.show.rows import Cells, line, rows_table


def choice_table(choice: Choice) -> Group:
    """Each measured save with its intervals, then the answer, what it leaves out, and what to do next."""
    table = Cells(
        f"{choice.run}: {choice.episodes} held-out episodes, {choice.frames} frames a save",
        ("step", "held-out loss", "action error", "switches missed", "against the chosen"),
    )
    for mark in choice.marks:
        table.row(
            f"{mark.step:,}" + ("" if mark.on_disk else " (deleted)"),
            interval(mark.loss),
            interval(mark.action),
            switches(mark.switches),
            against(mark, choice),
            style="bold" if mark.step == choice.chosen else "" if mark.on_disk else "dim",
        )
    which = "the average (EMA), as inference uses it" if choice.parameters == "average" else "as trained"
    facts = [
        ("answer", choice.answer),
        ("parameters", which),
        (
            "interval",
            f"95 %, {choice.interval}; differences paired by episode, 95 % for all of them together",
        ),
        ("action error", "share of each dimension's spread, mean over the dimensions"),
        *(("note", note) for note in choice.notes),
    ]
    return Group(table, rows_table("", facts), *(line(f"  {command}") for command in choice.commands))


def interval(value: Interval, digits: int = 4) -> str:
    """The mean with the ends of its interval."""
    if value.mean is None:
        return "not finite"
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}g}"
    return f"{value.mean:.{digits}g} ({value.low:.{digits}g} to {value.high:.{digits}g})"


def switches(found: Switches | None) -> str:
    """Missed of all, and the late and early ones among the others."""
    if found is None:
        return "none recorded"
    late = sum(n for offset, n in found.offsets.items() if offset > 0)
    early = sum(n for offset, n in found.offsets.items() if offset < 0)
    return f"{found.missed} of {found.count}; {early} early, {late} late"


def against(mark: Mark, choice: Choice) -> str:
    """The paired difference to the chosen save, and whether it is told apart."""
    if mark.step == choice.chosen:
        return "chosen"
    if mark.worse is None or mark.worse.mean is None:
        return "not compared"
    words = (
        "cannot be told apart"
        if mark.told_apart is not True
        else "worse"
        if mark.worse.mean > 0
        else "better"
    )
    ends = mark.worse
    held = "" if ends.low is None or ends.high is None else f" ({ends.low:+.3g} to {ends.high:+.3g})"
    return f"{ends.mean:+.3g}{held}: {words}"
