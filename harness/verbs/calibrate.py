"""What this machine's card does, measured: calibrate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.received.text import one_line
from harness.verbs.answers import answer
from harness.verbs.options import JsonOption

# Longer than any card needs for all stages.
_MOST_MINUTES = 240.0


def calibrate(
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            min=0.5,
            max=_MOST_MINUTES,
            help="Begin and end within so many minutes, the most telling stages first.",
        ),
    ] = 5.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Directory for calibration.json. Default: one of its own in the cache, where plan looks.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What this machine's GPU does: a few plans as they run, products, links, memory; no weights, no data.

    Started again, it goes on with what is left. Exit code 1 when a stage failed, or is left.
    """
    from harness.calibrate.card import target_of
    from harness.calibrate.run import Way
    from harness.calibrate.run import calibrate as carry_out
    from harness.probe.machine import probe
    from harness.run.directory import cache_root
    from harness.show.calibrating import Calibrating
    from harness.show.calibration import calibration_view

    target = target_of(probe([cache_root()]))
    with Calibrating(minutes) as ears:
        done = carry_out(target, output, minutes, Way(target.look), ears)
    answer(done.calibration, as_json, calibration_view)
    print(one_line(str(done.directory / done.calibration.FILE)), file=sys.stderr)
    if not done.complete:
        print("harness calibrate goes on with what is left", file=sys.stderr)
    raise typer.Exit(0 if done.complete else 1)
