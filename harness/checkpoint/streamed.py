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
import itertools
import math
from collections.abc import Iterator, Sequence
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

from harness.checkpoint.pieces import piece
from harness.checkpoint.tiles import Slices, bounds

# Chunks that are in memory at a time, over all items of a step: `STREAMED_HOST_BYTES` are theirs.
_CHUNKS = 4


class StreamedArrays(ocp.type_handlers.ArrayHandler):
    """Writes arrays in bounded memory. It reads them as Orbax's own handler does."""

    def __init__(self) -> None:
        self._metadatas = ArrayMetadatas()
        super().__init__(array_metadata_store=self._metadatas)
        self._pool = ThreadPoolExecutor(_CHUNKS)

    async def serialize(
        self, values: Sequence[jax.Array], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[ocp.future.Future]:
        args = args or [ocp.SaveArgs()] * len(values)
        empty = [info.name for value, info in zip(values, infos, strict=True) if not value.size]
        if empty:
            raise ValueError(f"arrays without elements cannot be saved: {', '.join(empty)}")
        shardings = _async_serialize_shardings([value.sharding for value in values], infos, primary_host=0)
        return [
            ocp.future.CommitFutureAwaitingContractedSignals(shardings, name="serialize_shardings"),
            ocp.future.CommitFutureAwaitingContractedSignals(
                self._write(values, infos, args), name="streamed_arrays"
            ),
        ]

    async def _write(self, values: Sequence[jax.Array], infos: Sequence[Any], args: Sequence[Any]) -> None:
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
                _write_chunk(*chunk)
            except BaseException:
                failed.set()
                raise

        for value, info, arg in zip(values, infos, args, strict=True):
            spec = build_array_write_spec(
                info=info,
                arg=arg,
                global_shape=value.shape,
                local_shape=value.sharding.shard_shape(value.shape),
                dtype=value.dtype,
                use_ocdbt=True,
                process_index=process,
            )
            metadatas.append(spec.metadata)
            # Process 0 writes the array's description. The others, and the writes, take it as given.
            if first:
                await ts.open(ts.Spec(spec.json), create=True, open=True, context=info.ts_context)
            opened = await ts.open(
                ts.Spec(spec.json), open=True, assume_metadata=True, context=info.ts_context
            )
            for data, here, there in own_chunks(value, spec.metadata.chunk_shape):
                writes.append(self._pool.submit(write, opened, data, here, there))
        await self._metadatas.write(infos[0].parent_dir, metadatas, jax.process_index())
        for one in writes:
            await asyncio.wrap_future(one)


def own_chunks(value: jax.Array, chunk_shape: Sequence[int]) -> Iterator[tuple[jax.Array, Slices, Slices]]:
    """(a device's part, a chunk's place in it, its place in the whole), of the chunks that are written here.

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
            yield shard.data, here, there


def _write_chunk(opened: Any, data: jax.Array, here: Slices, there: Slices) -> None:
    chunk: np.ndarray[Any, Any] = piece(data, here)
    # Nobody changes the chunk, so tensorstore needs no copy of it.
    opened[there].write(chunk, can_reference_source_data_indefinitely=True).result()
