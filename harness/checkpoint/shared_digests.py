"""Digests of arrays that several processes hold together. No array is sent.

A leaf of which every process holds all parts has the digest that it has in one process, the sha256 of its
elements in C order. Each process hashes its share of these leaves. The digests do not tell how many processes
there were.

A leaf that is cut over processes is whole nowhere. It is hashed tile by tile, each tile where it lies. Its
tiles are the cells of a grid that is finer than the cut, so that other numbers of processes can compare what
they read. The grid stands beside the digests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from harness.checkpoint.digests import digest_of_parts
from harness.checkpoint.pieces import piece
from harness.checkpoint.tiles import Slices, Tiled, bounds, cells, tile_digest
from harness.run.peers import Peers

# Pieces of a leaf on the host at a time, by one thread.
_SLICE_BYTES = 2**28
_THREADS = 4
# An axis that is cut over processes has so many tiles, if its length can be divided by that.
_TILES = 64


def shared_digests(
    leaves: Mapping[str, Any], peers: Peers, *, streamed: bool = False
) -> tuple[dict[str, str], dict[str, Tiled]]:
    """(path → sha256 of each leaf that every process holds whole, path → tiles of each other one).

    All processes call it with the same leaves. With `streamed`, no array keeps a copy of itself on the host.
    """
    of_leaf, of_tile = (digest_of_parts, piece) if streamed else (_digest, _at_once)
    whole = [path for path, leaf in leaves.items() if _is_whole_here(leaf)]
    mine = [path for path, owner in _owners(leaves, whole, peers.count).items() if owner == peers.index]
    grids = {path: grid_of(leaf) for path, leaf in leaves.items() if path not in set(whole)}
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = dict(zip(mine, pool.map(lambda path: of_leaf(leaves[path]), mine), strict=True))
        found_tiles = pool.map(lambda path: _own_tiles(leaves[path], grids[path], of_tile), grids)
        tiles = dict(zip(grids, found_tiles, strict=True))
    told = [json.loads(text) for text in peers.gather(json.dumps([digests, tiles]))]
    found = {path: value for each, _ in told for path, value in each.items()}
    cut = {}
    for path, grid in grids.items():
        by_tile = {int(number): value for _, each in told for number, value in each[path].items()}
        cut[path] = Tiled(grid, [by_tile[number] for number in range(math.prod(grid))])
    return {path: found[path] for path in whole}, cut


def grid_of(leaf: jax.Array) -> list[int]:
    """The number of tiles along each axis of `leaf`: a multiple of the number of its parts."""
    parts = [
        size // part for size, part in zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape), strict=True)
    ]
    return [
        1 if count == 1 else math.lcm(count, math.gcd(size, _TILES))
        for size, count in zip(leaf.shape, parts, strict=True)
    ]


def _is_whole_here(leaf: Any) -> bool:
    """Whether every process holds all parts of the leaf. Without JAX's arrays: a number, which all have."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return True
    held: dict[int, set[Any]] = {}
    every = leaf.sharding.devices_indices_map(leaf.shape)
    for device, index in every.items():
        held.setdefault(device.process_index, set()).add(bounds(index, leaf.shape))
    parts = {bounds(index, leaf.shape) for index in every.values()}
    return all(own == parts for own in held.values())


def _owners(leaves: Mapping[str, Any], paths: list[str], count: int) -> dict[str, int]:
    """Path → the process that hashes it, so that each has about as many bytes. The same in every process."""
    load = [0] * count
    owners = {}
    for path in sorted(paths, key=lambda path: (-np.size(leaves[path]), path)):
        owners[path] = load.index(min(load))
        load[owners[path]] += int(np.size(leaves[path])) + 1
    return owners


def _digest(leaf: Any) -> str:
    """The digest of a leaf that is whole here, as `digests.digest` gives it."""
    total = hashlib.sha256()
    for rows in _rows(leaf):
        total.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _rows(leaf: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The leaf on the host, a few rows of its first axis at a time."""
    if not isinstance(leaf, jax.Array) or leaf.ndim == 0 or leaf.is_fully_replicated:
        yield np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)
        return
    parts = {bounds(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
    step = max(_SLICE_BYTES // max(leaf.nbytes // leaf.shape[0], 1), 1)
    for start in range(0, leaf.shape[0], step):
        stop = min(start + step, leaf.shape[0])
        out = np.empty((stop - start, *leaf.shape[1:]), leaf.dtype)
        for ((low, high), *others), data in parts.items():
            begin, end = max(low, start), min(high, stop)
            if begin < end:
                target = (slice(begin - start, end - start), *(slice(*each) for each in others))
                out[target] = _on_host(data, begin - low, end - low)
        yield out


def _on_host(data: jax.Array, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Rows of one device's part. An array in pinned host memory cannot be sliced where it lies."""
    if data.sharding.memory_kind == "pinned_host" or end - begin == data.shape[0]:
        return np.asarray(data)[begin:end]
    return np.asarray(data[begin:end])


def _at_once(data: jax.Array, index: Slices) -> np.ndarray[Any, Any]:
    part: np.ndarray[Any, Any] = np.asarray(data)[index]
    return part


def _own_tiles(
    leaf: jax.Array, grid: list[int], read: Callable[[jax.Array, Slices], np.ndarray[Any, Any]]
) -> dict[int, str]:
    """Number of the tile → digest, of tiles in those parts of which this process has the first copy."""
    every = list(cells(leaf.shape, grid))
    found = {}
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        here, data = bounds(shard.index, leaf.shape), shard.data
        for number, cell in enumerate(every):
            edges = bounds(cell, leaf.shape)
            if all(low <= a and b <= high for (a, b), (low, high) in zip(edges, here, strict=True)):
                inside = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(edges, here, strict=True))
                found[number] = tile_digest(read(data, inside))
    return found
