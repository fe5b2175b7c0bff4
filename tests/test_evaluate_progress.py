"""Tests what is seen of an evaluation while it goes on, on a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from harness.artifacts.evaluation import Range, Rate
from harness.show.evaluating import Evaluating, rate_words


def rate(suite: str, successes: int, measured: int, errors: int = 0, missing: int = 0) -> Rate:
    return Rate(
        suite=suite,
        successes=successes,
        measured=measured,
        errors=errors,
        missing=missing,
        scenes=measured,
        rate=successes / measured if measured else None,
        interval=Range(low=0.1, high=0.9),
    )


RATES = [rate("libero_goal", 3, 4, 1, 5), rate("libero_10", 0, 0, 0, 10), rate("all", 3, 4, 1, 15)]


def shown(terminal: bool) -> str:
    text = io.StringIO()
    with Evaluating() as console:
        console._console = Console(file=text, force_terminal=terminal, width=140, soft_wrap=True)
        for done in (4, 5):
            console.measured(done, 20, RATES, 90.0)
        if not terminal:
            console.measured(20, 20, RATES, 0.0)
    return text.getvalue()


def test_a_terminal_has_a_bar_for_each_suite_with_its_rate() -> None:
    text = shown(True)
    assert "libero_goal" in text
    assert "5/10" in text
    assert "3/4 75.0 % (10.0 to 90.0), 1 not measured" in text
    assert "no outcome yet" in text
    assert "1 min 30 s left" in text


def test_elsewhere_the_first_and_the_last_line_are_printed_and_few_between() -> None:
    lines = shown(False).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("4 of 20 episodes: libero_goal 3/4 75.0 % (10.0 to 90.0), 1 not measured; all")
    assert lines[0].endswith("1 min 30 s left")
    assert lines[1].startswith("20 of 20")
    assert "left" not in lines[1]


def test_a_suite_without_an_outcome_has_no_rate() -> None:
    assert rate_words(rate("x", 0, 0, 2)) == "no outcome yet, 2 not measured"
