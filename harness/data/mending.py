"""Repair advice for a broken dataset that loses no data.

A hub's copy can be downloaded again; a recording cannot be repeated. So the advice deletes a file only if the
file is damaged and a hub has it. If the metadata are wrong, the files that they describe stay unchanged.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import HarnessError
from harness.received.pointers import holds_pointer, pointer
from harness.received.text import word


def hub_of(path: Path) -> str | None:
    """The hub's name of the dataset to which `path` belongs; None for a file that is not from the hub.

    Source: huggingface_hub keeps <cache>/datasets--<owner>--<name>/snapshots/<commit>.
    """
    for directory in (path, *path.parents):
        cache = directory.parent.parent
        if directory.parent.name == "snapshots" and cache.name.startswith("datasets--"):
            return cache.name.removeprefix("datasets--").replace("--", "/")
    return None


def damaged(code: str, what: str, path: Path, *, got: object = None, need: object = None) -> HarnessError:
    """The error for an incomplete file. A Git LFS pointer gets an error of its own."""
    real = Path(os.path.realpath(path))
    if holds_pointer(real, real.parent):
        return pointer(path)
    return HarnessError(code, what, got=got, need=need, fix=another_copy(path))


def another_copy(path: Path) -> str:
    """The advice for getting a complete copy of a damaged file."""
    hub = hub_of(path)
    if hub is not None:
        # The snapshot's entry is a link to the blob. A new download would link to the same blob again.
        both = " ".join(word(each) for each in dict.fromkeys((path, Path(os.path.realpath(path)))))
        return f"rm -f {both}; the same command then fetches this one file of {word(hub)} again"
    return f"copy {path.name} again from where the dataset was made; if there is no copy, keep what is here"


def missing(path: Path, what: str | None = None, *, need: object = None) -> HarnessError:
    """The error for a file that the dataset lacks."""
    hub = hub_of(path)
    if hub is not None:
        fix = f"the same command with the network fetches the missing files of {hub} (unset HF_HUB_OFFLINE)"
    else:
        fix = (
            "copy it from where the dataset was made; in a clone: git lfs pull; the files that are there"
            " stay as they are"
        )
    return HarnessError(
        "dataset-file-missing", what or f"the dataset lacks {path}", got="no such file", need=need, fix=fix
    )


def correct(where: Path | str, how: str) -> str:
    """The fix for wrong metadata of complete files."""
    hub = hub_of(Path(where))
    other = f"; or another revision of {hub}: --set data.revision=COMMIT" if hub is not None else ""
    return f"{how}{other}; data/, videos/ and images/ are left as they are"


def rewrite(where: Path | str) -> str:
    """The fix for metadata that do not have LeRobot's form."""
    return correct(where, "correct it, or rewrite meta/ with LeRobot's own writer")
