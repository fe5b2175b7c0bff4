"""Lists the files of a step or an item: sizes, the newest change, and strays that are not its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.received.files import walk
from harness.received.text import word

_SHOWN = 3


class Files(NamedTuple):
    """`sizes`: name below the directory → bytes.

    `strays`: links out of the directory or nowhere, FIFOs, devices, sockets.
    """

    sizes: dict[str, int]
    newest: float
    strays: list[str]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())


def files_of(directory: Path) -> Files:
    """The files below `directory`, each visited once. No file is opened, no link to a directory is followed.

    Raises: OSError; UnsafeFile for a tree that is too large for a checkpoint.
    """
    strays: list[Path] = []
    sizes, folders, newest = {}, {directory}, 0.0
    start = len(str(directory)) + 1
    for path in walk(directory, strays=strays):
        facts = path.stat()
        sizes[str(path)[start:]] = facts.st_size
        newest = max(newest, facts.st_mtime)
        folders.add(path.parent)
    # A file that was just begun shows in the time of its directory.
    newest = max(newest, *(folder.stat().st_mtime for folder in folders))
    return Files(sizes, newest, sorted(str(path)[start:] for path in strays))


def stray_problem(strays: list[str]) -> list[str]:
    """One line about the strays of an item; an empty list if there are none."""
    if not strays:
        return []
    named = ", ".join(strays[:_SHOWN]) + (f" and {len(strays) - _SHOWN} more" if len(strays) > _SHOWN else "")
    return [f"{named}: these lead out of it, lead nowhere, or are not regular files; they were not opened"]


def leads_out(directory: Path, names: Iterable[str]) -> HarnessError:
    """The refusal of an item that names, or links to, files outside of it."""
    listed = list(names)
    return HarnessError(
        "checkpoint-leads-out",
        f"{directory} names files outside of itself, or has links or special files instead of its own"
        " files; nothing was read",
        got=", ".join(listed[:_SHOWN])
        + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""),
        need="a checkpoint whose files all lie in its own directory",
        fix=(
            "do not use it unless you know who made it; if the links are yours, replace them by the files:"
            f" cp -rL {word(directory)} COPY"
        ),
    )


def refuse_strays(directory: Path) -> Files:
    """The files of `directory`, if all of them are its own.

    Raises: HarnessError "checkpoint-leads-out".
    """
    files = files_of(directory)
    if files.strays:
        raise leads_out(directory, files.strays)
    return files
