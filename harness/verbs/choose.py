"""Which checkpoint of a run: choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError
from harness.verbs.answers import answer, keep_if_possible
from harness.verbs.options import JsonOption, RunOption

if TYPE_CHECKING:
    from harness.run.directory import RunDir


def choose(
    path: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run that held episodes out. Default: --run.")
    ] = None,
    by: Annotated[
        str,
        typer.Option("--by", help="loss (the held-out loss) or action (the error of sampled actions)."),
    ] = "loss",
    fill: Annotated[
        bool,
        typer.Option(
            "--fill", help="First measure the saves on disk that were not measured, such as one of a stop."
        ),
    ] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which checkpoint: the saves of a run compared on the episodes that it held out (train.holdout).

    Exit code 1 when no save on disk can be chosen.
    """
    from harness.choose.choose import WORDS
    from harness.choose.choose import choose as compare
    from harness.run.directory import RunDir
    from harness.show.choice import choice_table

    given = path or run
    if given is None:
        raise HarnessError(
            "path-missing", "no run to choose from", need="a run directory", fix="harness choose runs/NAME"
        )
    if by not in WORDS:
        raise HarnessError(
            "choice-unknown",
            f"saves are not compared by {by!r}",
            got=by,
            need=" or ".join(WORDS),
            fix="--by loss",
        )
    directory = RunDir(given)
    if fill:
        _fill(directory)
    found = compare(directory, "action" if by == "action" else "loss")
    if run is not None and path is None:
        directory.write(found)
    elif not given.is_symlink():
        keep_if_possible(given, found)
    answer(found, as_json, choice_table)
    raise typer.Exit(0 if found.chosen is not None else 1)


def _fill(run: RunDir) -> None:
    """Measures the saves on disk that were not measured, on the device of the run's plan.

    Raises: HarnessError "run-busy" while the run is trained; those of the job and of the pass.
    """
    from harness.flow.device import prepare_jax
    from harness.probe.machine import probe
    from harness.run.job import job_of
    from harness.run.lock import locked
    from harness.show.progress import Progress

    job, console = job_of(run), Progress()
    with locked(run.path):
        prepare_jax(job.plan, probe([run.path]))
        from harness.train import device
        from harness.train.held_out_fill import fill

        device.start()
        filled = fill(job, console)
    console.say(f"{len(filled)} saves were measured" if filled else "every save on disk was measured before")
