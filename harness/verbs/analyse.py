"""What a loss curve says: analyse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.verbs.answers import answer, keep_if_possible
from harness.verbs.options import JsonOption, SetOption


def analyse(
    path: Annotated[
        str | None,
        typer.Argument(
            help=(
                "A run, a metrics.jsonl, a console log (openpi, LeRobot, transformers) or a CSV export,"
                " packed or not; - is standard input."
            )
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Recipe that the learning rates come from. Default: the run's own, else pi05_libero.",
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference", help="Another run or log to measure the distance to (may be given again)."
        ),
    ] = None,
    sets: SetOption = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory to look at; curve.json is written there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Whether a run learns, from its loss: trend with its uncertainty, findings, verdict.

    Exit code 1 for any verdict but `learning`.
    """
    from harness.analyse.curve import analyse as read
    from harness.analyse.source import STDIN
    from harness.run.directory import RunDir
    from harness.show.curve import curve_table

    target = path if path is not None else str(run) if run is not None else None
    if target is None:
        raise HarnessError(
            "path-missing",
            "nothing to analyse",
            need="a run, a metrics.jsonl or a console log",
            fix="harness analyse PATH",
        )
    stdin = sys.stdin.buffer if target == STDIN else None
    found = read(target, recipe=recipe, overrides=sets or [], references=reference or [], stdin=stdin)
    if run is not None:
        RunDir(run).write(found)
    elif target != STDIN and Path(target).is_dir() and not Path(target).is_symlink():
        # A link may be somebody else's, and lead to a run that nobody named; --run names it.
        keep_if_possible(Path(target), found)
    answer(found, as_json, curve_table)
    raise typer.Exit(0 if found.verdict == "learning" else 1)
