"""Reads one Orbax PyTree item leaf by leaf, each directly into its sharding and dtype.

Of an array that is cut over several processes, each reads what its own devices hold.

Orbax's own restore holds what it reads in host memory until all is read. Here a window of bytes bounds that
memory, so a card with 48 GB can be filled from a host with 8. Paths are the tree's keys joined by "/".
Source: the item's `_METADATA` (JSON) and its zarr arrays inside OCDBT, as orbax-checkpoint 0.11.13 and 0.12.8
write them.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from harness.checkpoint.chunks import LARGE_BYTES, read_array, read_part
from harness.checkpoint.digests import check
from harness.checkpoint.files import leads_out
from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.item import read_item
from harness.checkpoint.source import damaged
from harness.checkpoint.stored import Stored, open_context, opening, stored
from harness.checkpoint.tensors import Tensors
from harness.checkpoint.tiles import Slices, Tiled, bounds, tiles_of
from harness.errors import HarnessError
from harness.units import GIB

IN_FLIGHT_BYTES = GIB
_THREADS = 4

Look = Callable[[str, np.ndarray[Any, Any]], None]


class Leaf(NamedTuple):
    """One parameter, or another array, as stored on disk: in an Orbax item, or in tensors of PyTorch."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    store: Stored | Tensors

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, dtype: np.dtype[Any] | None = None) -> np.ndarray[Any, Any]:
        """Its elements, as stored or as `dtype`. For a large leaf only a few more pieces are in memory.

        Raises: ValueError, OSError or UnsafeFile if the data is damaged.
        """
        wanted = self.dtype if dtype is None else dtype
        return self.store.read(wanted) if isinstance(self.store, Tensors) else read_array(self.store, wanted)

    def read_part(self, part: Slices, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Its elements in `part`, as `dtype`.

        Raises: as `read`.
        """
        if isinstance(self.store, Tensors):
            return self.read(dtype)[part]
        return read_part(self.store, part, dtype)


def open_leaves(directory: Path) -> dict[str, Leaf]:
    """Path → leaf of every array in an Orbax PyTree item. Only metadata is read.

    Raises: HarnessError "checkpoint-damaged" if metadata or array data is missing or unreadable,
    "checkpoint-leads-out".
    """
    try:
        item = read_item(directory)
    except OSError as error:
        raise damaged(directory, f"{error.strerror}: {error.filename}") from error
    if item.leads_out:
        raise leads_out(directory, item.leads_out)
    if item.problems:
        raise damaged(directory, "; ".join(item.problems[:5]))
    # tensorstore would read a missing chunk as zeros.
    if item.missing:
        raise damaged(
            directory, f"data is missing of {len(item.missing)} arrays: {', '.join([*item.missing][:5])}"
        )
    context = open_context()
    begun = {path: opening(item, array, context) for path, array in item.arrays.items()}
    leaves = {}
    for path, future in begun.items():
        try:
            source = stored(item, item.arrays[path], future.result())
        except DAMAGE as error:
            raise damaged(directory, f"array {path}: {first_line(error)}") from error
        leaves[path] = Leaf(path, item.arrays[path].shape, np.dtype(source.store.dtype.numpy_dtype), source)
    return leaves


def read_leaves(
    leaves: Mapping[str, Leaf],
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    look: Look | None = None,
    *,
    sha256: Mapping[str, str | Tiled] | None = None,
) -> Iterator[tuple[str, jax.Array]]:
    """(path, array) of every wanted leaf, in the sharding and dtype of its ShapeDtypeStruct.

    The shapes must agree already. `look` is called with each leaf on the host, before the leaf goes to the
    device. `sha256` gives the expected digests of some leaves. A leaf that is cast while it is read is not
    compared.
    Raises: HarnessError "checkpoint-damaged".
    """
    known = sha256 or {}
    sizes = {
        path: math.prod(struct.shape) * max(np.dtype(struct.dtype).itemsize, leaves[path].dtype.itemsize)
        for path, struct in wanted.items()
    }
    budget = max(sizes.values(), default=0) + IN_FLIGHT_BYTES
    window: deque[tuple[str, Future[Any], int]] = deque()
    in_flight = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for path in sorted(wanted, key=lambda path: -sizes[path]):
                # While a small leaf is decoded, its chunk and the array that it is copied to exist together.
                cost = sizes[path] * (1 if sizes[path] > LARGE_BYTES else 2)
                while window and in_flight + cost > budget:
                    done, future, freed = window.popleft()
                    yield done, _to_device(done, future.result(), wanted[done], look)
                    del future
                    in_flight -= freed
                window.append(
                    (
                        path,
                        pool.submit(_read, leaves[path], wanted[path], known.get(path)),
                        cost,
                    )
                )
                in_flight += cost
            while window:
                done, future, _ = window.popleft()
                yield done, _to_device(done, future.result(), wanted[done], look)
                del future
        finally:
            pool.shutdown(cancel_futures=True)


class _Read(NamedTuple):
    """The elements in `part` of a leaf, on the host; None for all of them."""

    array: np.ndarray[Any, Any]
    part: Slices | None


def _read(leaf: Leaf, struct: jax.ShapeDtypeStruct, sha256: str | Tiled | None) -> _Read:
    dtype = np.dtype(struct.dtype)
    known = sha256 if dtype == leaf.dtype else None
    part = part_here(struct)
    try:
        tiles = None if part is None else tiles_inside(leaf.shape, part, known)
        if part is not None and (known is None or tiles is not None or not _checks(leaf.path, struct)):
            array = leaf.read_part(part, dtype)
        else:
            # All of it, to compare it: a digest of the whole leaf does not tell of a part.
            array, tiles = leaf.read(dtype), None
    except (OSError, *DAMAGE) as error:
        raise HarnessError(
            "checkpoint-damaged",
            f"array {leaf.path} cannot be read: {first_line(error)}",
            need="every data file of the checkpoint, whole",
            fix="copy or download the checkpoint again, or take another step",
        ) from error
    if part is None or array.shape == leaf.shape:
        if known is not None:
            check(leaf.path, array, known)
        return _Read(array if part is None else np.ascontiguousarray(array[part]), part)
    for inside, digest in tiles or ():
        check(leaf.path, array[inside], digest)
    return _Read(array, part)


def _checks(path: str, struct: jax.ShapeDtypeStruct) -> bool:
    """Whether this process is the one that compares the whole leaf. They share the leaves by their paths."""
    processes = sorted({device.process_index for device in struct.sharding.device_set})
    return processes[zlib.crc32(path.encode()) % len(processes)] == jax.process_index()


def part_here(struct: jax.ShapeDtypeStruct) -> Slices | None:
    """The smallest part of a leaf that holds all that this process's devices hold. None for all of it."""
    sharding = struct.sharding
    if sharding is None or sharding.is_fully_addressable or sharding.is_fully_replicated:
        return None
    held = [
        bounds(index, struct.shape)
        for index in sharding.addressable_devices_indices_map(struct.shape).values()
    ]
    part = tuple(slice(min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*held, strict=True))
    return None if all(one == slice(0, n) for one, n in zip(part, struct.shape, strict=True)) else part


def tiles_inside(
    shape: tuple[int, ...], part: Slices, known: str | Tiled | None
) -> list[tuple[Slices, str]] | None:
    """(place in `part`, digest) of the tiles that make up `part`. None if an edge of it cuts a tile."""
    found = []
    for cell, digest in tiles_of(shape, known) if isinstance(known, Tiled) else []:
        both = list(zip(cell, part, strict=True))
        if any(tile.stop <= own.start or tile.start >= own.stop for tile, own in both):
            continue
        if any(tile.start < own.start or tile.stop > own.stop for tile, own in both):
            return None
        found.append((tuple(slice(t.start - own.start, t.stop - own.start) for t, own in both), digest))
    return found or None


def _to_device(path: str, read: _Read, struct: jax.ShapeDtypeStruct, look: Look | None) -> jax.Array:
    array = read.array
    if look is not None:
        look(path, array)
    if struct.sharding is None or struct.sharding.is_fully_addressable:
        on_device = jax.device_put(array, struct.sharding)
    else:
        # device_put would send the whole leaf to all processes, to see whether they have the same.
        begins = [0] * array.ndim if read.part is None else [axis.start for axis in read.part]

        def own(index: Slices) -> np.ndarray[Any, Any]:
            edges = zip(bounds(index, struct.shape), begins, strict=True)
            return array[tuple(slice(a - begin, b - begin) for (a, b), begin in edges)]

        on_device = jax.make_array_from_callback(struct.shape, struct.sharding, own)
    # The host's copy of a large leaf must be freed before the next leaf is counted.
    return on_device.block_until_ready() if array.nbytes > LARGE_BYTES else on_device
