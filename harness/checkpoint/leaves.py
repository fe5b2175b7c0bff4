"""Reads one Orbax PyTree item leaf by leaf, each straight into its sharding and dtype.

Orbax's own restore holds what it reads in host memory until all is read; here a window of bytes bounds that, so a card
with 48 GB can be filled from a host with 8. Paths are the tree's keys joined by "/".
Source: the item's `_METADATA` (JSON) and its zarr arrays inside OCDBT, as orbax-checkpoint 0.11.13 and 0.12.8 write them.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts

from harness.checkpoint.chunks import cast, read_large
from harness.errors import HarnessError
from harness.units import GIB, MIB

IN_FLIGHT_BYTES = GIB
LARGE_BYTES = 256 * MIB
METADATA = "_METADATA"
INTERRUPTED = ".orbax-checkpoint-tmp"
_EMPTY = ("None", "Dict", "List", "NamedTuple", "Tuple")

Look = Callable[[str, np.ndarray[Any, Any]], None]


class Leaf(NamedTuple):
    """One array of an item, as it lies on disk."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    store: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def open_leaves(directory: Path) -> dict[str, Leaf]:
    """Path → leaf of every array in an Orbax PyTree item; reads metadata only.

    Raises: HarnessError "checkpoint-damaged" when metadata or array data is missing or unreadable.
    """
    names = _array_names(directory)
    ocdbt = (directory / "manifest.ocdbt").is_file()
    zarr3 = json.loads((directory / METADATA).read_text()).get("use_zarr3", False)
    # Compressed chunks are mapped from the page cache, so that only decoded bytes take memory of this process.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_mode": {"mode": "memmap"}})
    if ocdbt:
        _check_chunks(directory, names.values(), context)

    def spec(name: str) -> dict[str, Any]:
        kvstore = {"driver": "ocdbt", "base": directory_url(directory), "path": f"{name}/"} if ocdbt else {"driver": "file", "path": f"{directory / name}/"}
        return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": kvstore}

    opening = {path: ts.open(spec(name), open=True, read=True, context=context) for path, name in names.items()}
    leaves = {}
    for path, future in opening.items():
        try:
            store = future.result()
        except ValueError as error:
            raise damaged(directory, f"array {path}: {_first_line(error)}") from error
        leaves[path] = Leaf(path, tuple(store.shape), np.dtype(store.dtype.numpy_dtype), store)
    return leaves


def directory_url(directory: Path) -> str:
    """The directory as tensorstore's file URL."""
    return directory.absolute().as_uri() + "/"


def _array_names(directory: Path) -> dict[str, str]:
    """Path → name of the array in the item's store, without the empty nodes of the tree."""
    try:
        tree = json.loads((directory / METADATA).read_text())["tree_metadata"]
        entries = [([str(part["key"]) for part in entry["key_metadata"]], entry["value_metadata"]) for entry in tree.values()]
        return {"/".join(keys): ".".join(keys) for keys, value in entries if value["value_type"] not in _EMPTY}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(directory, f"{METADATA} is missing or is not Orbax metadata ({_first_line(error)})") from error


def _check_chunks(directory: Path, names: Any, context: ts.Context) -> None:
    """Refuses an item that lacks array data: tensorstore would read a missing chunk as zeros."""
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": directory_url(directory)}, context=context).result()
        keys = {key.decode() for key in store.list().result()}
    except ValueError as error:
        raise damaged(directory, _first_line(error)) from error
    have: dict[str, int] = {}
    for key in keys:
        name, _, rest = key.partition("/")
        have[name] = have.get(name, 0) + (not rest.endswith((".zarray", "zarr.json")))
    missing = [name for name in names if not have.get(name)]
    if missing:
        raise damaged(directory, f"no data for {len(missing)} arrays: {', '.join(missing[:5])}")


def read_leaves(leaves: Mapping[str, Leaf], wanted: Mapping[str, jax.ShapeDtypeStruct], look: Look | None = None) -> Iterator[tuple[str, jax.Array]]:
    """(path, array) of every wanted leaf, in the sharding and dtype of its ShapeDtypeStruct; shapes must agree already.

    `look` sees each leaf on the host, before it goes to the device.
    Raises: HarnessError "checkpoint-damaged".
    """
    window: deque[tuple[str, Any, int]] = deque()
    in_flight = 0
    for path in sorted(wanted, key=lambda path: -leaves[path].nbytes):
        leaf, dtype = leaves[path], np.dtype(wanted[path].dtype)
        if leaf.nbytes > LARGE_BYTES:
            array = _readable(leaf, partial(read_large, leaf.store, dtype))
            yield path, _to_device(path, array, wanted[path], look).block_until_ready()
            del array
            continue
        # While a leaf is decoded its chunk and the array it is copied to are both alive.
        cost = leaf.nbytes + math.prod(leaf.shape) * dtype.itemsize
        while window and in_flight + cost > IN_FLIGHT_BYTES:
            done, future, freed = window.popleft()
            yield done, _to_device(done, _readable(leaves[done], future.result), wanted[done], look)
            in_flight -= freed
        window.append((path, cast(leaf.store, dtype).read(), cost))
        in_flight += cost
    while window:
        done, future, _ = window.popleft()
        yield done, _to_device(done, _readable(leaves[done], future.result), wanted[done], look)


def _readable(leaf: Leaf, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, OSError) as error:
        raise HarnessError(
            "checkpoint-damaged",
            f"array {leaf.path} cannot be read: {_first_line(error)}",
            need="every data file of the checkpoint, whole",
            fix="copy or download the checkpoint again, or take another step",
        ) from error


def _to_device(path: str, array: Any, struct: jax.ShapeDtypeStruct, look: Look | None) -> jax.Array:
    array = np.asarray(array)
    if look is not None:
        look(path, array)
    return jax.device_put(array, struct.sharding)


def damaged(directory: Path, why: str) -> HarnessError:
    return HarnessError(
        "checkpoint-damaged",
        f"{directory} cannot be read: {why}",
        need="an Orbax item with its metadata and all its data files",
        fix="copy or download the checkpoint again, or take another step",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
