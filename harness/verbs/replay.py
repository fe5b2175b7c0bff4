"""A run checked on the host, in the image that its manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.verbs.answers import answer
from harness.verbs.options import JsonOption


def replay(
    run: Annotated[Path, typer.Argument(help="A run directory, perhaps somebody else's.")],
    image: Annotated[
        str | None, typer.Option("--image", help="Read this image alone; default: those of the harness here.")
    ] = None,
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="If no image matches, build it from the commit that the manifest names."
        ),
    ] = False,
    checkout: Annotated[
        Path, typer.Option("--checkout", help="The clone that has the commit, for --build.")
    ] = Path(),
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Steps to compute again; 0 compares the manifest only.")
    ] = 3,
    start: Annotated[
        int, typer.Option("--from", min=0, help="Begin at the checkpoint of this step instead of at step 0.")
    ] = 0,
    datasets: Annotated[
        Path | None, typer.Option("--datasets", help="Mounted read-only as /datasets.", exists=True)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Mounted read-only as /cache: weights.", exists=True)
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Where the verdict is written. Default: beside the run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run in its own surroundings: find the image it names by content, and verify inside of it.

    Runs on the host, and needs a container engine. An image's digest is computed, never read from a label.
    Exit code 0 when all is equal; 1 when something differs or cannot be told.
    """
    from harness.replay.engine import connect
    from harness.replay.replay import Asked, output
    from harness.replay.replay import replay as replay_run
    from harness.run.directory import RunDir, write_atomic
    from harness.show.progress import Progress
    from harness.show.replayed import replayed_table

    console = Progress()
    directory = RunDir(run)
    asked = Asked(image, build, checkout, steps, start, datasets, cache)
    found = replay_run(connect(), directory, asked, console.say)
    # First, so that what took minutes is told whatever the disk says.
    answer(found, as_json, replayed_table)
    try:
        write_atomic(to or output(directory), found.model_dump_json(indent=2) + "\n")
    except HarnessError as error:
        if to is not None:
            raise
        # Somebody else's run may lie where only he may write.
        console.warn(f"the verdict was not written, --to FILE writes it elsewhere: {error.what}")
    raise typer.Exit(0 if found.verdict == "equal" else 1)
