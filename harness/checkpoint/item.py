"""One Orbax PyTree item by its metadata: names, shapes, dtypes, and whether all of its data is there. No JAX, no Orbax.

Orbax keeps the tree in `_METADATA`, and each array as zarr (v2 or v3), inside OCDBT or as plain files. `_METADATA` has the
shape that each process wrote, which differs from the array's when it was sharded, so shapes are read from zarr.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

METADATA = "_METADATA"
MANIFEST = "manifest.ocdbt"
_EMPTY = ("None", "Dict", "List", "NamedTuple", "Tuple")
_ZARR = (".zarray", "zarr.json")


class Array(NamedTuple):
    """One array as stored; `path` joins the tree's keys by "/"."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    zarr3: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * itemsize(self.dtype)


@dataclass
class Item:
    """What the metadata of an item says; `problems` is empty for one that is whole, `damaged` when the tree is not fully known.

    `missing` counts the chunks that are not stored, by path: they read as zeros, which is what older writers mean by it. Of those `partly` have others.
    """

    directory: Path
    arrays: dict[str, Array] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    partly: set[str] = field(default_factory=set)
    damaged: bool = False
    fill_is_stored: bool = True

    def fail(self, problem: str) -> None:
        self.problems.append(problem)
        self.damaged = True


def read_item(directory: Path) -> Item:
    """The item at `directory`. Whatever is missing or torn becomes a problem of it; nothing is raised but PermissionError."""
    item = Item(directory)
    stored = _read_ocdbt(item) if (directory / MANIFEST).is_file() else _read_files(item)
    tree = _read_tree(item)
    if tree is None:
        # The arrays' own names hold the tree, joined by dots: better a partial answer than none.
        tree = {"/".join(name.split(".")): name for name in stored}
    for path, name in tree.items():
        if name not in stored:
            item.fail(f"array {path} has no data")
            continue
        header, chunks = stored[name]
        array, expected = _parse_zarr(path, name, header)
        if array is None:
            item.fail(f"array {path} has a damaged zarr header")
            continue
        item.arrays[path] = array
        # Older writers leave out a chunk that is all zeros; only a newer one's metadata promises every chunk.
        if chunks < expected:
            item.missing[path] = expected - chunks
            item.partly |= {path} if chunks else set()
        if chunks < expected and item.fill_is_stored:
            item.problems.append(f"array {path} lacks {expected - chunks} of {expected} chunks")
    return item


def _read_tree(item: Item) -> dict[str, str] | None:
    """Path → name in the store, of every array in `_METADATA`; None when it cannot be read."""
    try:
        facts = json.loads((item.directory / METADATA).read_text())
        item.fill_is_stored = bool(facts.get("store_array_data_equal_to_fill_value", False))
        entries = facts["tree_metadata"].values()
        keys = [[str(part["key"]) for part in entry["key_metadata"]] for entry in entries if entry["value_metadata"]["value_type"] not in _EMPTY]
    except FileNotFoundError:
        item.fail(f"{METADATA} is missing")
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        item.fail(f"{METADATA} is truncated or is not Orbax metadata ({type(error).__name__})")
    else:
        return {"/".join(parts): ".".join(parts) for parts in keys}
    return None


Stored = dict[str, tuple[bytes, int]]  # array's name → its zarr header and number of chunks


def _read_ocdbt(item: Item) -> Stored:
    """Every array of an OCDBT store, by walking its tree; also checks that the data files reach as far as the tree says."""
    import tensorstore as ts

    base = ts.KvStore.open(item.directory.absolute().as_uri() + "/").result()
    try:
        entries = list(_ocdbt_entries(ts, base))
    except (ValueError, KeyError, IndexError) as error:
        item.fail(f"{MANIFEST} or its index is damaged: {_first_line(error)}")
        return {}
    headers: dict[str, bytes] = {}
    chunks: dict[str, int] = {}
    reach: dict[str, int] = {}
    strays: set[str] = set()
    for key, entry in entries:
        name, _, rest = key.partition("/")
        location = entry.get("indirect_value")
        if location:
            file, end = _location(location)
            if outside(file):
                item.fail(f"array {name} has its data in {file}, outside of the item: it was not read")
                strays.add(name)
                continue
            reach[file] = max(reach.get(file, 0), end)
        if rest in _ZARR:
            headers[name] = entry["inline_value"] if not location else _value(ts, base, location)
        elif rest != ".zattrs":
            chunks[name] = chunks.get(name, 0) + 1
    for file, end in reach.items():
        _check_file(item, file, end)
    return {name: (header, chunks.get(name, 0)) for name, header in headers.items() if name not in strays}


def outside(name: str) -> bool:
    """Whether the name of a data file would lead out of its item."""
    return name.startswith("/") or ".." in name.split("/") or "://" in name


def _ocdbt_entries(ts: Any, base: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, entry) of every value in the newest version."""
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"].get("location")
    todo = [(root, b"")] if root else []
    while todo:
        location, prefix = todo.pop()
        if outside(_location(location)[0]):
            raise ValueError(f"a node lies in {_location(location)[0]}, outside of the item")
        node = ts.ocdbt.dump(base, location).result()
        for entry in node["entries"]:
            if "location" in entry:
                todo.append((entry["location"], prefix + entry.get("subtree_common_prefix", b"")))
            else:
                yield (prefix + entry["key"]).decode(), entry


def _location(text: str) -> tuple[str, int]:
    """(file below the item, first byte after the value) of "value:<base>:<file>:<offset>:<length>"."""
    _, folder, file, offset, length = text.split(":")
    return unquote(folder) + unquote(file), int(offset) + int(length)


def _value(ts: Any, base: Any, location: str) -> bytes:
    try:
        value: bytes = ts.ocdbt.dump(base, location).result()
    except ValueError:
        return b""
    return value


def _check_file(item: Item, file: str, end: int) -> None:
    try:
        size = (item.directory / file).stat().st_size
    except FileNotFoundError:
        item.problems.append(f"data file {file} is missing")
        return
    if size < end:
        item.problems.append(f"data file {file} is truncated: {size} bytes of at least {end}")


def _read_files(item: Item) -> Stored:
    """Every array of a store without OCDBT: one directory each."""
    found: Stored = {}
    for directory in sorted(path for path in item.directory.iterdir() if path.is_dir()):
        header = next((directory / name for name in _ZARR if (directory / name).is_file()), None)
        if header:
            chunks = sum(1 for path in directory.rglob("*") if path.is_file() and path.name not in (*_ZARR, ".zattrs"))
            found[directory.name] = (header.read_bytes(), chunks)
    if not found:
        item.fail(f"{MANIFEST} is missing")
    return found


def _parse_zarr(path: str, name: str, header: bytes) -> tuple[Array | None, int]:
    """(the array, the number of its chunks) from a zarr v2 or v3 header."""
    try:
        facts = json.loads(header)
        zarr3 = facts["zarr_format"] == 3
        chunk = facts["chunk_grid"]["configuration"]["chunk_shape"] if zarr3 else facts["chunks"]
        array = Array(path, name, tuple(int(n) for n in facts["shape"]), _dtype(facts["data_type" if zarr3 else "dtype"]), zarr3)
        return array, math.prod(-(-n // int(c)) for n, c in zip(array.shape, chunk, strict=True))
    except (ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError, RecursionError):
        return None, 0


def _dtype(text: str) -> str:
    """numpy's name: "<f4" → "float32"; names stay."""
    match = re.fullmatch(r"[<>|=]([fiub])(\d+)", text)
    if not match:
        return text
    kinds = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
    return "bool" if match[1] == "b" else f"{kinds[match[1]]}{int(match[2]) * 8}"


def itemsize(dtype: str) -> int:
    """Bytes of one element in memory."""
    match = re.match(r"(?<![a-z])[a-z]++(\d+)", dtype)
    return max(1, int(match[1]) // 8) if match else 1


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
