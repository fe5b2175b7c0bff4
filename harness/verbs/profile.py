"""Where the time of a step went: profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError
from harness.verbs.answers import answer, keep_if_possible
from harness.verbs.options import JsonOption, RunOption


def profile(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run that was trained with --profile. Default: --run."),
    ] = None,
    kernels: Annotated[
        int, typer.Option("--kernels", min=0, max=10_000, help="So many of the longest kernels.")
    ] = 10,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where the time of a step went: parts of the model by pass, host copies, idle time, longest kernels.

    It reads the trace that `harness train --profile STEPS` wrote, and needs no GPU.
    """
    from harness.profile.profile import profile as read
    from harness.show.profile import profile_view

    given = path or run
    if given is None:
        raise HarnessError(
            "path-missing", "no run to look at", need="a run directory", fix="harness profile runs/NAME"
        )
    found = read(given, kernels)
    if not given.is_symlink():
        keep_if_possible(given, found)
    answer(found, as_json, profile_view)
