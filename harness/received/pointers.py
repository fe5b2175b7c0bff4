"""Recognizes pointers of Git LFS: short texts that stand where files were not fetched with a clone."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.received.files import open_received
from harness.received.text import word

# The longest pointer, and how each begins. Source: git-lfs docs/spec.md, "The Pointer".
POINTER_BYTES = 1023
_POINTER = b"version https://git-lfs.github.com/spec/"


def is_pointer(data: bytes) -> bool:
    """True if a file that begins with `data` is a Git LFS pointer."""
    return data.startswith(_POINTER)


def holds_pointer(path: Path, root: Path) -> bool:
    """True if the file `path` below `root` can be opened and is a Git LFS pointer."""
    try:
        with open_received(path, root) as file:
            return is_pointer(file.read(len(_POINTER)))
    except (OSError, HarnessError):
        return False


def pointer(path: Path) -> HarnessError:
    """The error for a Git LFS pointer in the place of the file `path`."""
    return HarnessError(
        "git-lfs-pointer",
        f"{path} is a pointer of Git LFS: the file itself was not fetched with the clone",
        got="a text of three lines",
        need="the file",
        fix=f"git -C {word(path.parent)} lfs pull",
    )
