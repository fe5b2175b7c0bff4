"""Describes one Orbax PyTree item by its metadata: names, shapes, dtypes, and whether all its data is there.

No JAX, no Orbax.

Orbax keeps the tree in `_METADATA`, and each array as zarr (v2 or v3), inside OCDBT or as plain files.
`_METADATA` has the shape that each process wrote. For a sharded array that shape differs from the array's, so
shapes are read from zarr. Every reader of arrays begins here: a file that this module has not found inside
the item is not opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.checkpoint.files import Files, files_of, stray_problem
from harness.checkpoint.format import DAMAGE, EMPTY, ZARR2, ZARR3, Location, first_line, outside
from harness.checkpoint.header import HEADER_BYTES, Header, itemsize, parse_header
from harness.checkpoint.ocdbt import Entry, LeadsOut, Values, read_index
from harness.received.files import ARTIFACT_BYTES, UnsafeFile, read_received
from harness.received.json import read_json
from harness.received.pointers import POINTER_BYTES, holds_pointer
from harness.received.text import word
from harness.run.steps import METADATA, OCDBT_MANIFEST

_MOST_ARRAYS = 50_000
_MOST_KEYS = 64
_LONGEST_NAME = 1024

# What a key of the store leads to: a location, or the bytes if the index itself holds them.
Value = Location | bytes


class Array(NamedTuple):
    """One array as stored.

    `path` joins the tree's keys by "/". `chunks` are the stored chunks by their index in the grid.
    """

    path: str
    name: str
    header: Header
    chunks: dict[tuple[int, ...], Value]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def dtype(self) -> str:
        return self.header.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * itemsize(self.dtype)


@dataclass
class Item:
    """An item as its metadata describes it.

    `problems` is empty for a whole item. `damaged`: the tree is not fully known. `missing` counts, by path,
    the chunks that are not stored. They read as zeros, which is what older writers mean by them. `partly` are
    the paths of `missing` that have other chunks. `leads_out` are the names that lead out of the item, links
    included. No array of such an item is read.
    """

    directory: Path
    arrays: dict[str, Array] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    partly: set[str] = field(default_factory=set)
    damaged: bool = False
    fill_is_stored: bool = True
    leads_out: list[str] = field(default_factory=list)
    files: Files = field(default_factory=lambda: Files({}, 0.0, []))

    @property
    def in_ocdbt(self) -> bool:
        return OCDBT_MANIFEST in self.files.sizes

    def fail(self, problem: str) -> None:
        self.problems.append(problem)
        self.damaged = True

    def lead_out(self, what: str, name: str) -> None:
        self.leads_out.append(name)
        self.fail(f"{what}, outside of the item: it was not read")


class _Stored(NamedTuple):
    """One array of the store: its header, the zarr version, and its values by key."""

    header: bytes
    zarr3: bool
    values: dict[str, Value]


def read_item(directory: Path) -> Item:
    """The item at `directory`. Missing, torn or foreign parts become problems of the item.

    Raises: OSError for what may not be read; UnsafeFile for a tree that is too large for an item.
    """
    item = Item(directory, files=files_of(directory))
    for problem in stray_problem(item.files.strays):
        item.fail(problem)
    item.leads_out += item.files.strays
    if (reason := _unread(item)) is not None:
        item.fail(reason)
        return item
    stored = _read_ocdbt(item) if item.in_ocdbt else _read_files(item)
    tree = _read_tree(item)
    if tree is None:
        # The arrays' own names hold the tree, joined by dots. A partial answer is better than none.
        tree = {"/".join(name.split(".")): name for name in stored}
    for path, name in tree.items():
        if outside(name) or "/" in name:
            item.lead_out(f"{METADATA} names the array {name[:200]!r}", name)
        elif name not in stored:
            item.fail(f"array {path} has no data")
        else:
            _add(item, path, name, stored[name])
    return item


def _unread(item: Item) -> str | None:
    """Why nothing of the item can be read, though its files may be whole; None if there is no reason."""
    try:
        str(item.directory).encode()
    except UnicodeEncodeError:
        return "its path is not UTF-8, which the store's reader needs: rename or copy it"
    pointers = [
        name for name in (METADATA, OCDBT_MANIFEST) if holds_pointer(item.directory / name, item.directory)
    ]
    # A file of data has no name that Git LFS knows, so it may be a pointer where the others are not.
    pointers = pointers or [
        name
        for name, size in item.files.sizes.items()
        if size <= POINTER_BYTES and holds_pointer(item.directory / name, item.directory)
    ]
    if not pointers:
        return None
    return f"{pointers[0]} is a pointer of Git LFS, not the file: git -C {word(item.directory)} lfs pull"


def _add(item: Item, path: str, name: str, stored: _Stored) -> None:
    try:
        header = parse_header(stored.header, zarr3=stored.zarr3)
    except ValueError as error:
        item.fail(f"array {path} has a damaged zarr header: {first_line(error)}")
        return
    chunks = header.by_index(stored.values)
    item.arrays[path] = Array(path, name, header, chunks)
    expected = math.prod(header.grid)
    # Older writers leave out a chunk that is all zeros. Only a newer writer's metadata promises every chunk.
    if len(chunks) < expected:
        item.missing[path] = expected - len(chunks)
        item.partly |= {path} if chunks else set()
        if item.fill_is_stored:
            item.problems.append(f"array {path} lacks {expected - len(chunks)} of {expected} chunks")


def _read_tree(item: Item) -> dict[str, str] | None:
    """Path → name in the store, of every array in `_METADATA`; None if it cannot be read."""
    if METADATA not in item.files.sizes:
        item.fail(f"{METADATA} is missing")
        return None
    try:
        facts = read_json(item.directory / METADATA, item.directory, ARTIFACT_BYTES)
        item.fill_is_stored = bool(facts.get("store_array_data_equal_to_fill_value", False))
        nodes = list(facts["tree_metadata"].values())
        trees = [
            _keys(node["key_metadata"]) for node in nodes if node["value_metadata"]["value_type"] not in EMPTY
        ]
        if len(trees) > _MOST_ARRAYS:
            raise ValueError(f"{len(trees)} arrays")
    except PermissionError:
        raise
    except (OSError, UnsafeFile, *DAMAGE, AttributeError) as error:
        item.fail(f"{METADATA} is truncated or is not Orbax metadata ({type(error).__name__})")
        return None
    return {"/".join(keys): ".".join(keys) for keys in trees}


def _keys(parts: list[dict[str, Any]]) -> list[str]:
    keys = [part["key"] for part in parts]
    if not 0 < len(keys) <= _MOST_KEYS or not all(isinstance(key, (str, int)) for key in keys):
        raise ValueError("keys of no tree")
    names = list(map(str, keys))
    if sum(map(len, names)) > _LONGEST_NAME:
        raise ValueError("a name of no array")
    return names


def _read_ocdbt(item: Item) -> dict[str, _Stored]:
    """Every array of an OCDBT store. Also checks that the data files are as long as its index says."""
    with Values(item.directory, item.files.sizes) as values:
        try:
            index = read_index(values)
        except PermissionError:
            raise
        except LeadsOut as error:
            item.lead_out(f"a node lies in {str(error)[:200]!r}", str(error))
            return {}
        except (OSError, UnsafeFile, *DAMAGE) as error:
            item.fail(f"{OCDBT_MANIFEST} or its index is damaged: {first_line(error)}")
            return {}
        by_name = _by_name(item, index)
        found = {}
        for name, by_key in by_name.items():
            which = next((key for key in (ZARR2, ZARR3) if key in by_key), None)
            if which is not None:
                found[name] = _Stored(_bytes_at(values, by_key.pop(which)), which == ZARR3, by_key)
    return found


def _by_name(item: Item, index: list[Entry]) -> dict[str, dict[str, Value]]:
    """Array's name → key → value, of the arrays whose data is named inside the item.

    Data that is not there becomes a problem of the item.
    """
    by_name: dict[str, dict[str, Value]] = {}
    reach: dict[str, int] = {}
    strays: set[str] = set()
    for key, value in index:
        name, _, rest = key.partition("/")
        if isinstance(value, Location):
            if outside(value.file):
                strays |= {name}
                item.lead_out(f"array {name} has its data in {value.file[:200]!r}", value.file)
                continue
            reach[value.file] = max(reach.get(value.file, 0), value.end)
        by_name.setdefault(name, {})[rest] = value
    for file, end in reach.items():
        if file not in item.files.sizes:
            item.problems.append(f"data file {file} is missing")
        elif item.files.sizes[file] < end:
            item.problems.append(
                f"data file {file} is truncated: {item.files.sizes[file]} bytes of at least {end}"
            )
    return {name: by_key for name, by_key in by_name.items() if name not in strays}


def _bytes_at(values: Values, value: Value) -> bytes:
    """The header at `value`; empty if it is not there, which the header's parser then reports."""
    if isinstance(value, bytes):
        return value
    try:
        return values.read(value, HEADER_BYTES)
    except PermissionError:
        raise
    except (OSError, UnsafeFile, ValueError):
        return b""


def _read_files(item: Item) -> dict[str, _Stored]:
    """Every array of a store without OCDBT, which has one directory for each."""
    values: dict[str, dict[str, Location]] = {}
    for path, size in item.files.sizes.items():
        name, slash, rest = path.partition("/")
        if slash:
            values.setdefault(name, {})[rest] = Location(path, 0, size)
    found = {
        name: stored
        for name, by_key in sorted(values.items())
        if (stored := _of_files(item, by_key)) is not None
    }
    if not found:
        item.fail(f"{OCDBT_MANIFEST} is missing")
    return found


def _of_files(item: Item, by_key: Mapping[str, Location]) -> _Stored | None:
    which = next((key for key in (ZARR2, ZARR3) if key in by_key), None)
    if which is None:
        return None
    try:
        header = read_received(item.directory / by_key[which].file, item.directory, HEADER_BYTES)
    except UnsafeFile:
        header = b""
    return _Stored(header, which == ZARR3, dict(by_key))
