"""What a run amounts to: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.verbs.answers import rundir
from harness.verbs.options import JsonOption


def report(
    run: Annotated[Path, typer.Option("--run", help="Run directory; report.html is written there.")],
    as_json: JsonOption = False,
) -> None:
    """One self-contained report.html of a run: what was trained, the curves, the camera views, the checkpoint."""
    import json

    from harness.chain import write_report

    if not run.is_dir():
        raise HarnessError("run-missing", f"there is no run {run}", need="a run directory", fix="harness report --run runs/NAME")
    path = write_report(rundir(run))
    print(json.dumps({"path": str(path), "bytes": path.stat().st_size}) if as_json else path)
