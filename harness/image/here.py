"""The image that this process runs in: what it says of itself, and what it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal, NamedTuple

from harness.errors import HarnessError
from harness.image.contents import BOM, LIST, SUMMARY, UNREAD, Entry, hashes, look, of_directory, parse
from harness.image.parts import Summary, changed, named, read_summary, some, summary
from harness.image.variables import DECLARED, differences, of_container, read_declared

_NO_LIST = "the image has no list of its contents: it was built before images had one, or is none of ours"


class Here(NamedTuple):
    """The image's contents. A field is None if it cannot be known; `unknown` gives the reason, by field.

    `parts` is `Summary.parts`. `environment` are the variables that are not as the image declares them.
    """

    content: str | None = None
    parts: dict[str, str] | None = None
    environment: dict[str, str] | None = None
    unknown: dict[str, str] = {}


def claimed(root: Path = Path("/")) -> Here:
    """What the image says of itself, if a look at names, types, modes, owners and links does not contradict.

    Of files only those are read that are newer than the list; in most images there is none. `examined` reads
    every byte.
    """
    known = _known(root)
    if isinstance(known, str):
        return _with_environment(root, Here(unknown={"image_content": known}))
    said, entries, made = known
    try:
        wrong = _contradictions(root, entries, made)
        why = f"the image is not what its list says: {some(wrong)}" if wrong else ""
    except OSError as error:
        why = f"the image cannot be compared with its list: {error}"
    if why:
        return _with_environment(root, Here(unknown={"image_content": why}))
    return _with_environment(root, Here(said.content, said.parts))


def examined(root: Path = Path("/")) -> tuple[Here, dict[str, str]]:
    """(what the image is, part → which of its entries are not as the image's own list says).

    Every file is read. The few that this user may not read are taken as the list says.
    """
    known = _known(root)
    entries = {} if isinstance(known, str) else known[1]
    tree = of_directory(root).completed(entries)
    found = summary(tree)
    notes: dict[str, list[str]] = {}
    if not isinstance(known, str):
        for label, text in named(tree, entries):
            notes.setdefault(label, []).append(text)
    here = _with_environment(root, Here(found.content, found.parts))
    return here, {label: some(texts) for label, texts in notes.items()}


def own_text(what: Literal["bom", "summary"], root: Path = Path("/")) -> str:
    """A text that the image carries of itself.

    Raises: HarnessError "no-image-contents" outside of an image that has one.
    """
    path = root / {"bom": BOM, "summary": SUMMARY}[what]
    try:
        return path.read_text()
    except OSError as error:
        raise HarnessError(
            "no-image-contents",
            "this is no image that lists its contents",
            got=f"{path}: {error.strerror}",
            need="an image that was built from this checkout",
            fix="docker compose run --rm smoke image --sbom",
        ) from error


def _known(root: Path) -> tuple[Summary, dict[str, Entry], float] | str:
    """(summary, list, the time at which the list was made) of the image, or why there is none."""
    try:
        said = read_summary((root / SUMMARY).read_text())
        entries = parse((root / LIST).read_text())
        return said, entries, (root / LIST).stat().st_mtime
    except FileNotFoundError:
        return _NO_LIST
    except (OSError, ValueError) as error:
        return f"the image's list of its contents cannot be read: {error}"


def _contradictions(root: Path, entries: dict[str, Entry], made: float) -> list[str]:
    """What of the image is not as its list says. A file that is not newer than the list is not read.

    A newer one need not differ: a build may make a file anew, byte for byte, with the list from its cache.
    """
    seen = {}
    newer = []
    closed = []
    for path, status in look(root).items():
        before = entries.get(path)
        kind = stat.S_IFMT(status.st_mode)
        if before is not None:
            owner = f"{status.st_uid}:{status.st_gid}"
            mode = before.mode if before.kind == "l" else stat.S_IMODE(status.st_mode)
            same_kind = kind == _FORMATS.get(before.kind)
            target = os.readlink(root / path) if stat.S_ISLNK(kind) else ""
            shown = before.kind if same_kind else "other"
            seen[path] = before._replace(mode=mode, owner=owner, kind=shown, target=target)
            if stat.S_ISREG(kind) and status.st_mtime > made:
                newer.append(path)
            if stat.S_ISDIR(kind) and not status.st_mode & 0o005:
                closed.append(f"{path}/")
        else:
            seen[path] = Entry(path, "?", 0, "", "", "")
    below = tuple(closed)
    listed = {path: entry for path, entry in entries.items() if not (below and path.startswith(below))}
    there = {path: entry for path, entry in seen.items() if not (below and path.startswith(below))}
    # What this user may not read is taken as the list says, as in `examined`.
    late = [
        f"/{path}: changed after the list was made"
        for path, sha256 in hashes(root, newer).items()
        if sha256 not in (entries[path].sha256, UNREAD)
    ]
    return [*changed(listed, there), *late]


def _with_environment(root: Path, here: Here) -> Here:
    try:
        image = read_declared((root / DECLARED).read_text())
        return here._replace(environment=differences(image, of_container()))
    except (OSError, ValueError) as error:
        why = {"image_environment": f"the image's variables cannot be compared: {error}"}
        return here._replace(unknown=here.unknown | why)


_FORMATS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "c": stat.S_IFCHR, "b": stat.S_IFBLK}
