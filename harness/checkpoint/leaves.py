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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts

from harness.checkpoint.chunks import LARGE_BYTES, read_array
from harness.checkpoint.confined import outside, stray_files
from harness.checkpoint.digests import check
from harness.checkpoint.item import METADATA
from harness.errors import HarnessError
from harness.units import GIB

IN_FLIGHT_BYTES = GIB
_THREADS = 4
# Beside `params` that hold only what was trained: which weights hold the rest.
BASE = "harness/base.json"
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

    @property
    def chunks(self) -> int:
        """How many chunks (of a sharded zarr3 array: shards) its data is made of."""
        sizes = self.store.chunk_layout.write_chunk.shape or self.shape
        return math.prod(-(-length // size) for length, size in zip(self.shape, sizes, strict=True))


def open_leaves(directory: Path) -> dict[str, Leaf]:
    """Path → leaf of every array in an Orbax PyTree item; reads metadata only.

    Raises: HarnessError "checkpoint-damaged" when metadata or array data is missing or unreadable, "checkpoint-leads-out".
    """
    names = _array_names(directory)
    ocdbt = (directory / "manifest.ocdbt").is_file()
    zarr3 = json.loads((directory / METADATA).read_text()).get("use_zarr3", False)
    stray = sorted(name for name in names.values() if outside(name) or "/" in name)
    if stray:
        raise _leads_out(directory, stray)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    chunks = _chunk_counts(directory, context) if ocdbt else None

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
    _check_chunks(directory, leaves, names, chunks)
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


def _chunk_counts(directory: Path, context: ts.Context) -> dict[str, int]:
    """Name of an array → how many chunks of it the item holds; every file that they lie in is inside the item."""
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": directory_url(directory)}, context=context).result()
        stray = stray_files(store.base, context)
        keys = {key.decode() for key in store.list().result()}
    except (ValueError, KeyError) as error:
        raise damaged(directory, _first_line(error)) from error
    if stray:
        raise _leads_out(directory, stray)
    have: dict[str, int] = {}
    for key in keys:
        name, _, rest = key.partition("/")
        have[name] = have.get(name, 0) + (not rest.endswith((".zarray", "zarr.json")))
    return have


def _check_chunks(directory: Path, leaves: Mapping[str, Leaf], names: Mapping[str, str], have: dict[str, int] | None) -> None:
    """Refuses an item that lacks array data: tensorstore would read a missing chunk as zeros."""
    if have is None:
        have = {name: sum(path.is_file() and not path.name.startswith((".", "zarr.json")) for path in (directory / name).rglob("*")) for name in names.values()}
    missing = [path for path, leaf in leaves.items() if have.get(names[path], 0) < leaf.chunks]
    if missing:
        raise damaged(directory, f"data is missing of {len(missing)} arrays: {', '.join(missing[:5])}")


def _leads_out(directory: Path, stray: list[str]) -> HarnessError:
    return HarnessError(
        "checkpoint-leads-out",
        f"{directory} names files outside of itself; nothing of them was read",
        got=", ".join(stray[:3]),
        need="a checkpoint whose files all lie in its own directory",
        fix="do not use it: no Orbax version writes such a checkpoint; ask where it comes from",
    )


def read_leaves(
    leaves: Mapping[str, Leaf], wanted: Mapping[str, jax.ShapeDtypeStruct], look: Look | None = None, *, sha256: Mapping[str, str] | None = None
) -> Iterator[tuple[str, jax.Array]]:
    """(path, array) of every wanted leaf, in the sharding and dtype of its ShapeDtypeStruct; shapes must agree already.

    `look` sees each leaf on the host, before it goes to the device. `sha256` says what some leaves must be; a leaf that is cast
    while it is read is not compared.
    Raises: HarnessError "checkpoint-damaged".
    """
    known = sha256 or {}
    sizes = {path: math.prod(struct.shape) * max(np.dtype(struct.dtype).itemsize, leaves[path].dtype.itemsize) for path, struct in wanted.items()}
    budget = max(sizes.values(), default=0) + IN_FLIGHT_BYTES
    window: deque[tuple[str, Future[Any], int]] = deque()
    in_flight = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for path in sorted(wanted, key=lambda path: -sizes[path]):
                # While a small leaf is decoded its chunk and the array it is copied to are both alive.
                cost = sizes[path] * (1 if sizes[path] > LARGE_BYTES else 2)
                while window and in_flight + cost > budget:
                    done, future, freed = window.popleft()
                    yield done, _to_device(done, future.result(), wanted[done], look)
                    del future
                    in_flight -= freed
                window.append((path, pool.submit(_read, leaves[path], np.dtype(wanted[path].dtype), known.get(path)), cost))
                in_flight += cost
            while window:
                done, future, _ = window.popleft()
                yield done, _to_device(done, future.result(), wanted[done], look)
                del future
        finally:
            pool.shutdown(cancel_futures=True)


def _read(leaf: Leaf, dtype: np.dtype[Any], sha256: str | None) -> np.ndarray[Any, Any]:
    try:
        array = read_array(leaf.store, dtype)
    except (ValueError, OSError) as error:
        raise HarnessError(
            "checkpoint-damaged",
            f"array {leaf.path} cannot be read: {_first_line(error)}",
            need="every data file of the checkpoint, whole",
            fix="copy or download the checkpoint again, or take another step",
        ) from error
    if sha256 is not None and dtype == leaf.dtype:
        check(leaf.path, array, sha256)
    return array


def _to_device(path: str, array: np.ndarray[Any, Any], struct: jax.ShapeDtypeStruct, look: Look | None) -> jax.Array:
    if look is not None:
        look(path, array)
    placed = jax.device_put(array, struct.sharding)
    # The host's copy of a large leaf must be gone before the next one is counted.
    return placed.block_until_ready() if array.nbytes > LARGE_BYTES else placed


def damaged(directory: Path, why: str) -> HarnessError:
    return HarnessError(
        "checkpoint-damaged",
        f"{directory} cannot be read: {why}",
        need="an Orbax item with its metadata and all its data files",
        fix="copy or download the checkpoint again, or take another step",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
