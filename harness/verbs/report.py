"""What a run amounts to: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.received.text import one_line, word
from harness.verbs.answers import rundir
from harness.verbs.options import JsonOption, RunOption


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help=("Runs; the curves of the others are laid over the first one's. Or one or two evaluations."),
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
    checkpoint, the simulator, the verdicts. Of two evaluations: each scene side by side.
    """
    import json

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
    page = _page(given)
    try:
        write_atomic(target, page)
    except HarnessError as error:
        if error.code != "not-writable" or output is not None:
            raise
        # Somebody else's run may lie where only he may write.
        again = " ".join(word(path) for path in given)
        fix = f"harness report {again} --output FILE.html; or {error.fix}"
        raise HarnessError(error.code, error.what, got=error.got, need=error.need, fix=fix) from error
    print(
        json.dumps({"path": str(target), "bytes": target.stat().st_size})
        if as_json
        else one_line(str(target))
    )


def _page(given: list[Path]) -> str:
    """The page of runs, or of one or two evaluations.

    Raises: HarnessError "report-mixed"; those of the pages.
    """
    from harness.report import evaluation
    from harness.report.page import render
    from harness.run.evaluations import is_evaluation

    found = [is_evaluation(path) for path in given]
    if not any(found):
        return render(rundir(given[0]), [rundir(path) for path in given[1:]])
    if not all(found) or len(given) > 2:
        raise HarnessError(
            "report-mixed",
            "a page shows runs, or one evaluation, or two side by side",
            got=f"{sum(found)} evaluations and {len(found) - sum(found)} runs",
            need="one or two evaluations, or runs alone",
            fix="harness report EVALUATION OTHER; the page of a run shows its newest evaluation by itself",
        )
    return evaluation.render(rundir(given[0]), rundir(given[1]) if len(given) == 2 else None)
