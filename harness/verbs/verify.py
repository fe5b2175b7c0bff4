"""Whether a run is what it says, and can be had again: verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.received.consent import hear
from harness.show.progress import busy
from harness.verbs.answers import answer, keep_if_possible
from harness.verbs.options import DeviceOption, FetchOption, JsonOption, OfflineOption


def verify(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second run: the two are compared, and nothing is computed again.")
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Steps to compute again; 0 compares the manifest only.")
    ] = 3,
    start: Annotated[
        int, typer.Option("--from", min=0, help="Begin at the checkpoint of this step instead of at step 0.")
    ] = 0,
    device: DeviceOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a run against this machine and these files, field by field, then compute its first steps again
    and compare them.

    Exit code 0 when all is equal; 1 when something differs or cannot be told.
    """
    from harness.run.directory import RunDir
    from harness.show.progress import Progress
    from harness.show.verdict import verdict_table
    from harness.verify.run import verify_pair, verify_run

    console = Progress()
    hear(fetch=fetch, offline=offline)
    if other is not None:
        with busy("comparing"):
            found = verify_pair(RunDir(run), RunDir(other))
    else:
        found = verify_run(RunDir(run), steps=steps, start=start, device=device, watcher=console)
        keep_if_possible(run, found)
    answer(found, as_json, verdict_table)
    raise typer.Exit(0 if found.verdict == "equal" else 1)
