"""The command that each host runs, and the texts that all engines share."""

from __future__ import annotations

import hashlib

from harness.launch.asked import START, Asked
from harness.received.text import one_line

# Where a container finds a recipe that is no shipped one: no part of the image (harness.image.contents).
RECIPE = "/run/harness/recipe.yaml"
# Makes the directory of the run, and then becomes the command. All processes may do it at once.
_MAKE = 'mkdir -p -- "$HARNESS_RUNS" "$HARNESS_CACHE" "$1" && shift && exec "$@"'


def train_words(asked: Asked, run: str, *, contained: bool) -> list[str]:
    """The words of `harness train`, for a run in the directory `run` as its process sees it.

    Always with --resume: it takes a directory without a run in it for the start of one. So whoever starts
    the same command again goes on.
    """
    program = [START] if contained else asked.program
    recipe = RECIPE if contained and asked.recipe_text is not None else asked.recipe
    device = "cuda" if asked.gpus else "cpu"
    return [
        *program,
        "train",
        "--resume",
        f"--run={run}",
        f"--recipe={recipe}",
        f"--device={device}",
        *asked.options,
    ]


def contained_words(asked: Asked, run: str) -> list[str]:
    """The words of the same command for an engine that starts a container, and makes no directory in it."""
    return ["/bin/sh", "-c", _MAKE, "sh", run, *train_words(asked, run, contained=True)]


def head(asked: Asked, *use: str) -> list[str]:
    """The lines that stand above a file, without a mark of a comment."""
    devices = f"{asked.gpus} GPUs" if asked.gpus else "CPUs"
    recipe = asked.recipe
    if asked.recipe_text is not None:
        recipe += f", sha256 {hashlib.sha256(asked.recipe_text.encode()).hexdigest()[:16]}"
    return [
        one_line(line)
        for line in (
            f"Run {asked.name}: recipe {recipe}; hosts: {asked.hosts}, of {devices}.",
            *([f"Planned: {asked.plan}"] if asked.plan else []),
            *use,
        )
    ]
