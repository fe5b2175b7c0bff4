"""What a run amounts to: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.received.text import one_line
from harness.verbs.answers import rundir
from harness.verbs.options import JsonOption, RunOption


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Runs; the curves of the others are laid over the first one's."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Where the page goes. Default: report.html in the run; of several, compare.html here.",
        ),
    ] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """One self-contained page of a run, or of several laid over each other: what was trained, the curves, the
    checkpoint, the verdicts.
    """
    import json

    from harness.report.page import render
    from harness.run.directory import REPORT, write_atomic

    given = [*([run] if run else []), *(paths or [])]
    if not given:
        raise HarnessError(
            "path-missing", "no run to report on", need="a run directory", fix="harness report runs/NAME"
        )
    missing = [path for path in given if not path.is_dir()]
    if missing:
        raise HarnessError(
            "run-missing",
            f"there is no run {missing[0]}",
            need="a run directory",
            fix="ls runs; harness report runs/NAME",
        )
    target = output or (given[0] / REPORT if len(given) == 1 else Path("compare.html"))
    write_atomic(target, render(rundir(given[0]), [rundir(path) for path in given[1:]]))
    print(
        json.dumps({"path": str(target), "bytes": target.stat().st_size})
        if as_json
        else one_line(str(target))
    )
