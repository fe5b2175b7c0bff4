"""The weights that a run started from, as they lie on this machine.

The manifest may come from someone else, so only weights are read. A path of the manifest is hashed only if it
belongs to the recipe's own source, and if that source looks like weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.artifacts.training import Manifest
from harness.download.cache import fetch_tree, is_remote, kept_tree
from harness.errors import HarnessError
from harness.received.consent import Named
from harness.received.files import MARK_BYTES, UnsafeFile, walk
from harness.received.json import read_json
from harness.received.text import word
from harness.run.directory import sha256_directory, sha256_file
from harness.run.steps import BASE, METADATA, PARAMS

_MOST_BASES = 8


def digests_here(manifest: Manifest) -> tuple[dict[str, str] | None, str | None]:
    """(digests of the weights in the manifest's own form, None) or (None, the reason why they are unknown).

    Missing weights are fetched if the user has consented to that (`harness.received.consent`).
    """
    recorded, own = manifest.weights, manifest.recipe.get("weights", {}).get("source")
    source = recorded.get("source")
    if source == "random" and own is None:
        return {"source": "random", "seed": str(manifest.recipe["train"].get("seed"))}, None
    if source != own:
        return (
            None,
            (
                f"the manifest's weights come from {source!r}, those of its recipe from {own!r}; no file was"
                " read"
            ),
        )
    files = recorded.get("files", {})
    names = sorted(files) if isinstance(files, dict) else []
    try:
        found = (
            _of_tree(manifest, str(source), names)
            if is_remote(str(source))
            else _of_directories(Path(str(source)), names)
        )
    except HarnessError as error:
        return None, f"{error.what}; {error.fix}"
    except (OSError, ValueError) as error:
        return None, f"{source} cannot be read: {error}"
    return {"source": str(source)} | found, None


def _of_tree(manifest: Manifest, source: str, names: list[str]) -> dict[str, str]:
    """Name → sha256 of the files of a remote directory."""
    files = manifest.weights.get("files", {})
    sizes = [item.get("bytes") for item in files.values() if isinstance(item, dict)]
    claimed = sum(size for size in sizes if isinstance(size, int)) or None
    tree = fetch_tree(source, named=Named("the run's manifest", bytes=claimed)).path
    there = {path.relative_to(tree).as_posix() for path in walk(tree)}
    _check_own(names, there, source)
    return {name: sha256_file(tree / name) for name in names}


def _of_directories(source: Path, names: list[str]) -> dict[str, str]:
    """Last part of the path → sha256, for the `params` directories that a local source means."""
    there = {str(form): path for path in _params(source) for form in (path, path.absolute())}
    _check_own(names, there, source)
    for path in {there[name] for name in names}:
        strays: list[Path] = []
        for _ in walk(path, strays=strays):
            pass
        if strays:
            what = f"{strays[0]} is no regular file inside of {path}, so that directory was not hashed"
            raise HarnessError(
                "file-leaves-root",
                what,
                fix=f"replace the links by the files: cp -rL {word(path)} COPY",
            )
    return {
        name.rpartition("/")[2] if name.startswith("/") else name: sha256_directory(there[name])
        for name in names
    }


def _params(source: Path, bases: int = 0) -> list[Path]:
    """The `params` directory of `source`, then those of the bases below it, if they are on this machine."""
    found = source if (source / METADATA).is_file() else source / PARAMS
    if not (found / METADATA).is_file():
        raise HarnessError(
            "weights-missing",
            f"{source} is not on this machine, or holds no weights",
            fix="put the weights there, and verify again",
        )
    record = found.parent / BASE
    if not record.is_file() or bases >= _MOST_BASES:
        return [found]
    try:
        below = read_json(record, found.parent, MARK_BYTES)["source"]
        path = kept_tree(below) if is_remote(below) else Path(below)
        return [found] if path is None else [found, *_params(path, bases + 1)]
    except (HarnessError, UnsafeFile, OSError, ValueError, KeyError, TypeError):
        return [found]


def _check_own(names: list[str], there: Any, source: object) -> None:
    """Refuses a name that is no file of the source. The message tells nothing about what lies there.

    Raises: HarnessError "not-of-the-source".
    """
    for name in names:
        if name not in there:
            what = f"the manifest names {name!r}, which is no file of {source}; it was not read"
            raise HarnessError(
                "not-of-the-source", what, fix="compare with the weights that the recipe names"
            )
