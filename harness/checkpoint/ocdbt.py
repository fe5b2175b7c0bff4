"""Walks the index of an OCDBT store once: which keys it has, and where each value lies.

The store may come from a stranger.

A manifest names the root of a B+tree. Each node names the file, offset and length of the nodes or values
below it. In a sound tree the heights fall by one and nothing is named twice. Any other tree is refused as
damaged, even if it has few bytes.
Source: tensorstore kvstore/ocdbt/format (manifest.h, btree.h, codec_util.cc), version 0.1.86.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harness.checkpoint.format import Location, outside, parse_location
from harness.checkpoint.packed import zstd_most
from harness.received.files import open_received
from harness.run.steps import OCDBT_MANIFEST
from harness.units import MIB

# Orbax keeps a whole tree in one node: 1 MiB for π0.5. tensorstore's own nodes have at most 8 MiB.
_NODE_BYTES = 16 * MIB
_MOST_NODES = 10_000
_MOST_ENTRIES = 300_000
_LONGEST_KEY = 2048
_MOST_OPEN = 64
# Magic number and length, before two varints (version, compression), the body, and a checksum.
_HEADER_BYTES = 12
_CHECKSUM_BYTES = 4


class LeadsOut(ValueError):
    """A node of the index lies outside of the item."""


class Entry(NamedTuple):
    """One value: its bytes if the index itself holds them, else its location."""

    key: str
    value: bytes | Location


def read_index(values: Values) -> list[Entry]:
    """Every value of the newest version of the store in the item of `values`.

    A value's own location is not checked here.

    Raises: LeadsOut; ValueError, or another of `DAMAGE`, if the index is damaged.
    """
    return list(_Walk(values).entries())


class Values:
    """Reads the bytes at the locations of an item, whose files have these `sizes`.

    The files stay open until it is closed.
    """

    def __init__(self, directory: Path, sizes: Mapping[str, int]) -> None:
        self.directory, self.sizes = directory, sizes
        self._open: dict[str, BinaryIO] = {}

    def __enter__(self) -> Values:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def read(self, location: Location, limit_bytes: int) -> bytes:
        """The bytes at `location`.

        Raises: ValueError if they are not there, or are more than `limit_bytes`; OSError and UnsafeFile as
        `open_received`.
        """
        if location.file not in self.sizes:
            raise ValueError(f"data file {location.file!r} is missing")
        if location.end > self.sizes[location.file]:
            raise ValueError(
                f"data file {location.file} is truncated: {self.sizes[location.file]} bytes of at least"
                f" {location.end}"
            )
        if location.length > limit_bytes:
            raise ValueError(f"{location.length} bytes where at most {limit_bytes} belong")
        if len(self._open) >= _MOST_OPEN and location.file not in self._open:
            self.__exit__()
        file = self._open.get(location.file) or self._open.setdefault(
            location.file, open_received(self.directory / location.file, self.directory)
        )
        file.seek(location.offset)
        return file.read(location.length)


class _Walk:
    def __init__(self, values: Values) -> None:
        import tensorstore as ts

        self._ts, self._values = ts, values
        self._context = ts.Context()
        self._base = ts.KvStore.open(
            values.directory.absolute().as_uri() + "/", context=self._context
        ).result()
        self._seen: set[Location] = set()
        self._count = 0

    def entries(self) -> Iterator[Entry]:
        manifest = self._dump(None)
        if manifest["config"].get("manifest_kind", "single") != "single":
            raise ValueError("a manifest in several files, which Orbax does not write")
        newest = manifest["versions"][-1]
        # A reader of the newest version does not follow the others. They are checked because they are of the
        # same manifest.
        others = [
            *manifest["version_tree_nodes"],
            *(version["root"] for version in manifest["versions"][:-1]),
        ]
        for other in others:
            if "location" in other and outside(name := parse_location(other["location"]).file):
                raise LeadsOut(name)
        root = newest["root"].get("location")
        if root is not None:
            yield from self._below(root, newest["root_height"])

    def _below(self, root: str, height: int) -> Iterator[Entry]:
        todo = [(root, b"", height)]
        while todo:
            text, prefix, height = todo.pop()
            node = self._dump(text)
            if node["height"] != height or height < 0:
                raise ValueError(f"a node of height {node['height']} where {height} belongs")
            self._count += len(node["entries"])
            if self._count > _MOST_ENTRIES:
                raise ValueError(f"more than {_MOST_ENTRIES} entries")
            for entry in node["entries"]:
                key = prefix + entry["key"]
                if len(key) > _LONGEST_KEY:
                    raise ValueError(f"a key of {len(key)} bytes")
                if "location" in entry:
                    todo.append(
                        (entry["location"], prefix + entry.get("subtree_common_prefix", b""), height - 1)
                    )
                else:
                    value = entry["indirect_value"] if "indirect_value" in entry else entry["inline_value"]
                    yield Entry(key.decode(), parse_location(value) if isinstance(value, str) else value)

    def _dump(self, text: str | None) -> Any:
        """The manifest, or the node at a location, decoded by tensorstore.

        How much it unpacks to is checked first.
        """
        location = (
            Location(OCDBT_MANIFEST, 0, self._values.sizes[OCDBT_MANIFEST])
            if text is None
            else parse_location(text)
        )
        if outside(location.file):
            raise LeadsOut(location.file)
        if location in self._seen:
            raise ValueError("a node is named twice")
        self._seen.add(location)
        if len(self._seen) > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} nodes")
        _check_unpacked(self._values.read(location, _NODE_BYTES))
        return self._ts.ocdbt.dump(self._base, text, context=self._context).result()


def _check_unpacked(data: bytes) -> None:
    """Refuses a node whose body unpacks to more than a node may have."""
    file = io.BytesIO(data[:-_CHECKSUM_BYTES])
    file.seek(_HEADER_BYTES)
    _skip_varint(file)
    if _skip_varint(file) and zstd_most(file, len(data) - _CHECKSUM_BYTES - file.tell()) > _NODE_BYTES:
        raise ValueError(f"a node unpacks to more than {_NODE_BYTES} bytes")


def _skip_varint(file: io.BytesIO) -> int:
    """The variable-length number at the file's position."""
    number = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("a node ends within its header")
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
    raise ValueError("a number of more than 64 bits")
