"""The choice among a run's saves as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts.choice import Apart, Choice, Interval, Switches
from harness.show.rows import Cells, line, rows_table

_DIGITS = ".3g"


def choice_table(choice: Choice) -> Group:
    """Each measured save with its intervals, the answer, the chosen save's errors, and what to do next."""
    table = Cells(
        f"{choice.run}: {choice.episodes} held-out episodes, {choice.frames} frames a save",
        ("step", "held-out loss", "action error", "missed", "early", "late", "difference", ""),
    )
    for mark in choice.marks:
        table.row(
            f"{mark.step:,}" + ("" if mark.on_disk else " (deleted)"),
            mark.loss.words(_DIGITS),
            mark.action.words(_DIGITS),
            *switches(mark.switches),
            "" if mark.worse is None else mark.worse.words(f"+{_DIGITS}"),
            choice.word_of(mark),
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
        (
            "switches",
            "of two-valued dimensions, such as a gripper's: missed; early and late with mean frames",
        ),
        *(("note", note) for note in choice.notes),
    ]
    return Group(
        table,
        *_datasets(choice),
        *_errors(choice),
        rows_table("", facts),
        *(line(f"  {command}") for command in choice.commands),
    )


def _errors(choice: Choice) -> list[Cells]:
    """The chosen save's error of each dimension, in the robot's units."""
    chosen = next((mark for mark in choice.marks if mark.step == choice.chosen), None)
    if chosen is None:
        return []
    title = f"error of sampled actions at step {chosen.step:,}, in the robot's units"
    if not chosen.datasets:
        return [_table(title, chosen.errors)]
    return [_table(f"{title}: {one.dataset}", one.errors) for one in chosen.datasets]


def _table(title: str, errors: list[Interval]) -> Cells:
    table = Cells(title, ("dimension", "mean |error|"))
    for d, each in enumerate(errors):
        table.row(f"actions[{d}]", each.words(_DIGITS))
    return table


def _datasets(choice: Choice) -> list[Cells]:
    """Of a mixture: the held-out loss and action error of each dataset at each save."""
    if not any(mark.datasets for mark in choice.marks):
        return []
    table = Cells("each dataset alone", ("step", "dataset", "held-out loss", "action error"))
    for mark in choice.marks:
        for one in mark.datasets:
            table.row(f"{mark.step:,}", one.dataset, one.loss.words(_DIGITS), one.action.words(_DIGITS))
    return [table]


def switches(found: Switches | None) -> tuple[str, str, str]:
    """(missed of all, the early ones, the late ones), each with its mean distance in frames."""
    if found is None:
        return "none recorded", "", ""
    return f"{found.missed} of {found.count}", _distance(found.early), _distance(found.late)


def _distance(apart: Apart) -> str:
    return f"{apart.many} by {apart.frames:.1f}" if apart.many else "0"
