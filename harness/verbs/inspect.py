"""What a checkpoint holds: inspect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.flow.training import inspect_path
from harness.received.consent import hear
from harness.received.text import one_line
from harness.verbs.answers import answer
from harness.verbs.options import FetchOption, JsonOption, OfflineOption, RunOption

PathArgument = Annotated[
    Path | None,
    typer.Argument(help="A run, a checkpoint directory or one step of it, ours or openpi's. Default: --run."),
]
DeepOption = Annotated[
    bool,
    typer.Option(
        "--deep",
        help="Read the arrays too: values that are not finite, norms, a sha256 of each, adapters' rank.",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        help=(
            "Which parts moved since: a step's number, 'base' (the weights trained from), or a path. Writes"
            " moved.png."
        ),
    ),
]
CleanOption = Annotated[
    bool, typer.Option("--clean", help="Delete the interrupted saves that are safe to delete.")
]


def inspect(
    path: PathArgument = None,
    deep: DeepOption = False,
    against: AgainstOption = None,
    clean: CleanOption = False,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint holds: steps whole and interrupted, parameters by group, adapters.

    Exit code 1 when none is whole and sound.
    """
    from harness.run.directory import RunDir
    from harness.show.checkpoint import checkpoint_table

    hear(fetch=fetch, offline=offline)
    target = path or run
    if target is None:
        raise HarnessError(
            "path-missing",
            "nothing to inspect",
            need="a run or a checkpoint directory",
            fix="harness inspect PATH",
        )
    if clean:
        from harness.checkpoint.scan import delete_interrupted

        for save in delete_interrupted(inspect_path(target, deep=False)):
            print(f"deleted {one_line(save.path)}", file=sys.stderr)
    found = inspect_path(target, deep=deep, against=against)
    if run is not None:
        RunDir(run).write(found)
    answer(found, as_json, checkpoint_table)
    if found.moved is not None:
        from harness.show.moved_picture import write

        print(f"picture: {one_line(str(write(found, target, run)))}", file=sys.stderr)
    sound = any(step.complete for step in found.steps) and not found.non_finite
    raise typer.Exit(0 if sound else 1)
