"""Deletes the steps of a run that its recipe does not keep."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

from harness.received.files import there
from harness.run.steps import INTERRUPTED

_DELETED = re.compile(rf"(?<![0-9])[0-9]++{re.escape(INTERRUPTED)}-deleted-[0-9]+")


def prune(directory: Path, steps: list[int]) -> str | None:
    """Deletes these steps of `directory`, and what an earlier call could not delete.

    What another process holds open on a network disk, or another user owns, stays and is tried again by the
    next call: it takes space, and is no reason to end a training. Returns a sentence about it, or None.
    """
    failed: list[OSError] = []
    for step in steps:
        # Renamed first: if a process dies while it deletes, what is left does not look like a whole step.
        try:
            (directory / str(step)).rename(free_name(directory / f"{step}{INTERRUPTED}-deleted"))
        except OSError as error:
            failed.append(error)
    for path in directory.iterdir():
        # Only what this function has renamed; a link of such a name stays.
        if _DELETED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=lambda _, __, of: failed.append(of[1]))  # type: ignore[arg-type]
    if not failed:
        return None
    first = failed[0]
    return (
        f"an older step could not be deleted and takes space ({first.filename}: {first.strerror}); it is"
        " tried again at the next save"
    )


def free_name(path: Path) -> Path:
    """`path` with the first number at its end that nothing there has."""
    return next(
        name
        for name in (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
        if not there(name)
    )
