"""An Orbax handler of jax.Arrays that writes chunk by chunk, from where an array lies to the files.

Orbax's own handler holds a copy of all that it writes. Its limit `save_device_host_concurrent_gb` counts
whole leaves, of which the largest has 4.5 GiB, holds a batch while it copies the next, and leaves the copies
of a GPU's arrays with them. Here only the chunks that are written at the moment are in memory.

What is written is Orbax's: its specification of an array, its metadata, its database, which the item's
handler merges and Orbax renames with the step. Of several processes each writes its own parts. Of parts that
several devices hold, each writes a share of the chunks.

The arrays must not change before the save is whole.
Source: orbax-checkpoint 0.12.8, jax_array_handlers.ArrayHandler and serialization.async_serialize_from_host.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint._src.metadata.array_metadata_store import Store as ArrayMetadatas
from orbax.checkpoint._src.serialization.jax_array_handlers import _async_serialize_shardings
from orbax.checkpoint._src.serialization.ocdbt_utils import get_process_index_for_subdir
from orbax.checkpoint._src.serialization.tensorstore_utils import build_array_write_spec

from harness.checkpoint.pieces import MadeRows, piece
from harness.checkpoint.tiles import Slices, bounds

# Chunks that are in memory at a time, over all items of a step: `STREAMED_HOST_BYTES` are theirs.
_CHUNKS = 4


Array = np.ndarray[Any, Any]
# How a chunk is read, and its place in the array.
Chunk = tuple[Callable[[], Array], Slices]
# Is told the bytes of each chunk that was written, in the thread that wrote it.
Wrote = Callable[[int], None]


class StreamedArrays(ocp.type_handlers.ArrayHandler):
    """Writes arrays in bounded memory. It reads them as Orbax's own handler does."""

    def __init__(self, wrote: Wrote) -> None:
        super().__init__(array_metadata_store=ArrayMetadatas())
        self._writing = _Writing(_CHUNKS, wrote)

    async def serialize(
        self, values: Sequence[jax.Array], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[ocp.future.Future]:
        args = args or [ocp.SaveArgs()] * len(values)
        empty = [info.name for value, info in zip(values, infos, strict=True) if not value.size]
        if empty:
            raise ValueError(f"arrays without elements cannot be saved: {', '.join(empty)}")
        shardings = _async_serialize_shardings([value.sharding for value in values], infos, primary_host=0)
        return [_begun(shardings), _begun(self._write(values, infos, args))]

    async def _write(self, values: Sequence[jax.Array], infos: Sequence[Any], args: Sequence[Any]) -> None:
        parts = [value.sharding.shard_shape(value.shape) for value in values]
        metadatas = await self._writing.write(values, infos, args, parts, own_chunks)
        await self._array_metadata_store.write(infos[0].parent_dir, metadatas, jax.process_index())


class StreamedRows(ocp.type_handlers.NumpyHandler):
    """Writes leaves of `MadeRows`, a few rows at a time. To a reader they are arrays of numpy."""

    def __init__(self, wrote: Wrote) -> None:
        super().__init__()
        self._writing = _Writing(1, wrote)

    async def serialize(
        self, values: Sequence[MadeRows], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[ocp.future.Future]:
        args = args or [ocp.SaveArgs()] * len(values)
        # A chunk never has rows of two groups.
        parts = [(value.rows, *value.shape[1:]) for value in values]
        return [_begun(self._writing.write(values, infos, args, parts, _groups))]


class _Writing:
    """Writes chunks, so many at a time."""

    def __init__(self, at_a_time: int, wrote: Wrote) -> None:
        self._pool, self._wrote = ThreadPoolExecutor(at_a_time), wrote

    async def write(
        self,
        values: Sequence[Any],
        infos: Sequence[Any],
        args: Sequence[Any],
        parts: Sequence[tuple[int, ...]],
        chunks: Callable[[Any, Sequence[int]], Iterator[Chunk]],
    ) -> list[Any]:
        """Orbax's descriptions of the arrays, which are then on the disk.

        `parts` are the shapes that chunks divide, and `chunks(value, shape of a chunk)` are those that this
        process writes.
        """
        for info in infos:
            await info.await_path_creation()
        first, process = jax.process_index() == 0, get_process_index_for_subdir(True)
        metadatas = []
        writes: list[Future[None]] = []
        failed = Event()

        def write(*chunk: Any) -> None:
            # After the first that fails no other begins.
            if failed.is_set():
                return
            try:
                self._wrote(_write_chunk(*chunk))
            except BaseException:
                failed.set()
                raise

        for value, info, arg, part in zip(values, infos, args, parts, strict=True):
            spec = build_array_write_spec(
                info=info,
                arg=arg,
                global_shape=value.shape,
                local_shape=part,
                dtype=value.dtype,
                use_ocdbt=True,
                process_index=process,
            )
            metadatas.append(spec.metadata)
            # Process 0 writes the array's description. The others, and the writes, take it as given.
            if first:
                ts.open(ts.Spec(spec.json), create=True, open=True, context=info.ts_context).result()
            opened = ts.open(
                ts.Spec(spec.json), open=True, assume_metadata=True, context=info.ts_context
            ).result()
            for read, there in chunks(value, spec.metadata.chunk_shape):
                writes.append(self._pool.submit(write, opened, read, there))
        for one in writes:
            await asyncio.wrap_future(one)
        return metadatas


def _begun(work: Any) -> ocp.future.Future:
    return ocp.future.CommitFutureAwaitingContractedSignals(work, name="streamed")


def _groups(value: MadeRows, _: Sequence[int]) -> Iterator[Chunk]:
    """(its reader, its place) of each group of rows. Process 0 writes them all, as arrays of numpy."""
    for start, stop in value.groups() if jax.process_index() == 0 else ():
        rest = (slice(0, size) for size in value.shape[1:])
        yield functools.partial(value.make, start, stop), (slice(start, stop), *rest)


def own_chunks(value: jax.Array, chunk_shape: Sequence[int]) -> Iterator[Chunk]:
    """(its reader, its place in the whole) of each chunk that is written here.

    Of the devices that hold the same part, each has its share of the chunks.
    """
    part = value.sharding.shard_shape(value.shape)
    copies = len(value.sharding.device_set) * math.prod(part) // math.prod(value.shape)
    for shard in value.addressable_shards:
        origin = [low for low, _ in bounds(shard.index, value.shape)]
        grid = itertools.product(
            *(range(0, size, each) for size, each in zip(part, chunk_shape, strict=True))
        )
        for number, starts in enumerate(grid):
            if number % copies != shard.replica_id:
                continue
            here = tuple(
                slice(start, min(start + each, size))
                for start, each, size in zip(starts, chunk_shape, part, strict=True)
            )
            there = tuple(slice(low + at.start, low + at.stop) for low, at in zip(origin, here, strict=True))
            yield functools.partial(piece, shard.data, here), there


def _write_chunk(opened: Any, read: Callable[[], Array], there: Slices) -> int:
    """Bytes of the chunk, which is written then."""
    chunk = read()
    # Nobody changes the chunk, so tensorstore needs no copy of it.
    opened[there].write(chunk, can_reference_source_data_indefinitely=True).result()
    return int(chunk.nbytes)
