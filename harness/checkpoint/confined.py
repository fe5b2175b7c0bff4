"""What an Orbax item's own files may point to: nothing outside of it. A checkpoint from elsewhere must not make us read other files.

Source: tensorstore's OCDBT format (a manifest, then a tree of nodes, each naming the file, offset and length of what is below it).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import tensorstore as ts


def outside(name: str) -> bool:
    """Whether a relative name would lead out of its directory, or is no plain name at all."""
    path = PurePosixPath(name)
    return not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or "://" in name


def stray_files(base: Any, context: Any) -> list[str]:
    """The files outside of the item that its newest version would read, of an OCDBT kvstore's `base`.

    Raises: ValueError when a node is damaged.
    """
    manifest = ts.ocdbt.dump(base, context=context).result()
    versions = list(manifest["versions"])
    for reference in manifest["version_tree_nodes"]:
        versions += _versions(base, reference, context)
    newest = max(versions, key=lambda version: version["generation_number"], default=None)
    root = newest["root"].get("location") if newest else None
    # References to older versions are not followed by a reader, but they are of the same manifest: they are looked at too.
    named = {_file(reference["location"]) for reference in manifest["version_tree_nodes"]}
    named |= {_file(location) for version in versions if (location := version["root"].get("location"))}
    return sorted(name for name in named | set(_files(base, root, context)) if outside(name))


def _versions(base: Any, reference: dict[str, Any], context: Any) -> list[dict[str, Any]]:
    if outside(_file(reference["location"])):
        return []
    node = ts.ocdbt.dump(base, reference["location"], context=context).result()
    inner = [version for child in node.get("entries", []) if "root" not in child for version in _versions(base, child, context)]
    return [entry for entry in [*node.get("versions", []), *node.get("entries", [])] if "root" in entry] + inner


def _files(base: Any, location: str | None, context: Any) -> Iterator[str]:
    """The file of every node and value below `location`; one outside is named and not opened."""
    if location is None:
        return
    name = _file(location)
    yield name
    if outside(name):
        return
    for entry in ts.ocdbt.dump(base, location, context=context).result()["entries"]:
        if "indirect_value" in entry:
            yield _file(entry["indirect_value"])
        elif "location" in entry:
            yield from _files(base, entry["location"], context)


def _file(location: str) -> str:
    """The file of `type:base:name:offset:length`, where base and name are percent-encoded and base may be empty."""
    _, base, name, _, _ = location.split(":")
    return unquote(base) + unquote(name)
