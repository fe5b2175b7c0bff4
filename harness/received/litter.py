"""Names that systems lay among a person's files: macOS, Windows, network disks, NFS.

They come and go with a look at a directory or a copy of it, and are no part of what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources.abc import Traversable
from typing import TypeVar

T = TypeVar("T", bound=Traversable)

# Of Finder, of its copies to other disks, of Windows' Explorer, of files deleted while open on NFS, of
# Synology and QNAP, of fsck, of desktops' trash. Zarr's own hidden files (.zarray, .zgroup) are none of them.
_LITTER = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]{8,}|@eaDir|\.@__thumb|lost\+found|\.Trash-[0-9]+",
    re.IGNORECASE,
)


def is_litter(*parts: str) -> bool:
    """True if one of the parts of a relative path is such a name."""
    return any(_LITTER.fullmatch(part) for part in parts)


def named(entries: Iterable[T], suffix: str) -> list[T]:
    """The entries whose names end in `suffix`, by name, without such names."""
    own = (entry for entry in entries if entry.name.endswith(suffix) and not is_litter(entry.name))
    return sorted(own, key=lambda entry: entry.name)
