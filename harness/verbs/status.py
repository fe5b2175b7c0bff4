"""How a run stands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from harness.verbs.answers import answer, print_line
from harness.verbs.options import JsonOption, RunOption

# The states of a run that may change yet.
_GOES_ON = ("preparing", "running", "silent", "unknown")


def status(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="A run directory. Default: --run, else the run that was written to last."
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            min=0.2,
            help="Look again every so many seconds, until the run ends. With --json: a line a look.",
        ),
    ] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """How a run stands: progress, time left, loss, pace, memory; from its files, also of one that died.

    Exit code 1 when it died or is silent.
    """
    from harness.run.directory import RunDir
    from harness.run.status import newest_run, read_status
    from harness.show.status import status_table

    given = path or run
    directory = RunDir(given) if given is not None else newest_run()
    found = read_status(directory)
    if watch is not None and as_json:
        print_line(found)
        while found.state in _GOES_ON:
            time.sleep(watch)
            found = read_status(directory)
            print_line(found)
    elif watch is not None:
        from rich.live import Live

        with Live(status_table(found), auto_refresh=False) as live:
            while found.state in _GOES_ON:
                time.sleep(watch)
                found = read_status(directory)
                live.update(status_table(found), refresh=True)
    else:
        answer(found, as_json, status_table)
    raise typer.Exit(1 if found.state in ("died", "silent") else 0)
