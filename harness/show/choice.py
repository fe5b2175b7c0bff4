"""The choice among a run's saves as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts.choice import Choice, Interval, Mark, Switches
from harness.show.rows import Cells, line, rows_table


def choice_table(choice: Choice) -> Group:
    """Each measured save with its intervals, the answer, the chosen save's errors, and what to do next."""
    table = Cells(
        f"{choice.run}: {choice.episodes} held-out episodes, {choice.frames} frames a save",
        ("step", "held-out loss", "action error", "missed", "early", "late", "difference", ""),
    )
    for mark in choice.marks:
        table.row(
            f"{mark.step:,}" + ("" if mark.on_disk else " (deleted)"),
            interval(mark.loss),
            interval(mark.action),
            *switches(mark.switches),
            "" if mark.worse is None else interval(mark.worse, signed=True),
            verdict(mark, choice),
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
        table.row(f"actions[{d}]", interval(each))
    return table


def _datasets(choice: Choice) -> list[Cells]:
    """Of a mixture: the held-out loss and action error of each dataset at each save."""
    if not any(mark.datasets for mark in choice.marks):
        return []
    table = Cells("each dataset alone", ("step", "dataset", "held-out loss", "action error"))
    for mark in choice.marks:
        for one in mark.datasets:
            table.row(f"{mark.step:,}", one.dataset, interval(one.loss), interval(one.action))
    return [table]


def interval(value: Interval, *, signed: bool = False) -> str:
    """The mean with the ends of its interval, in three digits."""
    form = "+.3g" if signed else ".3g"
    if value.mean is None:
        return "not finite"
    if value.low is None or value.high is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"


def switches(found: Switches | None) -> tuple[str, str, str]:
    """(missed of all, the early ones, the late ones), each with its mean distance in frames."""
    if found is None:
        return "none recorded", "", ""
    early = {-offset: n for offset, n in found.offsets.items() if offset < 0}
    late = {offset: n for offset, n in found.offsets.items() if offset > 0}
    return f"{found.missed} of {found.count}", _distance(early), _distance(late)


def _distance(frames: dict[int, int]) -> str:
    count = sum(frames.values())
    return f"{count} by {sum(k * n for k, n in frames.items()) / count:.1f}" if count else "0"


def verdict(mark: Mark, choice: Choice) -> str:
    """What the paired difference to the chosen save says."""
    if mark.step == choice.chosen:
        return "chosen"
    if mark.worse is None or mark.worse.mean is None:
        return "not compared"
    if mark.told_apart is not True:
        return "cannot be told apart"
    return "worse" if mark.worse.mean > 0 else "better"
