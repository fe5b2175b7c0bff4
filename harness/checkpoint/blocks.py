"""Reads the kept parameters in blocks that follow each other in C order, adapters merged, a few ahead.

While one block is used, threads unpack the next ones, into memory that is used again: fresh memory costs more
than the copy that it saves. A leaf that cannot be read in blocks comes whole, as in `merge.arrays`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from harness.checkpoint import chunks
from harness.checkpoint.chunks import Stream, read_run
from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.merge import Array, Merging, check_finite, merging_into, whole
from harness.checkpoint.source import damaged
from harness.checkpoint.stored import Stored
from harness.units import MIB

_BLOCK_BYTES = 64 * MIB
# What the largest tensors need together. Memory that is not touched is not there.
_MEMORY_BYTES = 128 * MIB
_AHEAD = 3
# Two unpack faster than one hashes what is written; more take its turns on a small machine.
_THREADS = 2


class Want(NamedTuple):
    """A kept parameter. Its blocks begin at multiples of `unit` elements."""

    path: str
    unit: int


class Block(NamedTuple):
    """Elements of the parameter at `path`, flat, from the element `start` on.

    `values` may hold something else once the next block is taken.
    """

    path: str
    start: int
    values: Array


class _Task(NamedTuple):
    """How a block is made: `make` takes memory of `nbytes`, or None if it makes its own.

    `in_order`: after the task before it.
    """

    path: str
    start: int
    nbytes: int
    make: Callable[[Array | None], Array]
    own_memory: bool = False
    in_order: bool = False


def blocks(opened: Merging, wanted: list[Want]) -> Iterator[Block]:
    """Each wanted parameter, block after block.

    In memory are at most four blocks, of 64 MiB or of what is needed together. Of leaves that come whole: the
    one that is used, and the next one if both together are at most 1.5 of the largest leaf.
    Raises: HarnessError "weights-not-finite", "checkpoint-damaged".
    """
    most = 3 * max((_leaf_bytes(opened, want.path) for want in wanted), default=0) // 2
    window: deque[tuple[_Task, Future[Array], Array | None]] = deque()
    free: list[Array] = []
    held = 0
    # What is one stream is unpacked by one thread, from its first byte to its last.
    with ThreadPoolExecutor(_THREADS) as pool, ThreadPoolExecutor(1) as stream:
        try:
            for task in _and_end(task for want in wanted for task in _tasks(opened, want)):
                while window and (task is None or len(window) > _AHEAD or held + task.nbytes > most):
                    first, made, memory = window.popleft()
                    yield Block(first.path, first.start, made.result())
                    del made
                    held -= first.nbytes
                    if memory is not None:
                        free.append(memory)
                if task is not None:
                    memory = None if task.own_memory else _memory(free, task.nbytes)
                    work = (stream if task.in_order else pool).submit(task.make, memory)
                    window.append((task, work, memory))
                    held += task.nbytes
        finally:
            for each in (pool, stream):
                each.shutdown(cancel_futures=True)


def _and_end(tasks: Iterator[_Task]) -> Iterator[_Task | None]:
    yield from tasks
    yield None


def _memory(free: list[Array], nbytes: int) -> Array:
    """Memory of at least `nbytes`, taken from what is free. What is too small makes room for it."""
    fits = next((n for n, each in enumerate(free) if each.size >= nbytes), None)
    if fits is not None:
        return free.pop(fits)
    if free:
        free.pop()
    return np.empty(max(nbytes, _MEMORY_BYTES), np.uint8)


def _leaf_bytes(opened: Merging, path: str) -> int:
    return math.prod(opened.shapes[path]) * opened.dtype(path).itemsize


def _tasks(opened: Merging, want: Want) -> Iterator[_Task]:
    path, store = want.path, opened.leaves[want.path].store
    added = opened.additions is not None and opened.additions.touching(path)
    if not isinstance(store, Stored) or added or not store.header.is_runs or not _is_large(store):
        yield _Task(path, 0, _leaf_bytes(opened, path), lambda _: whole(opened, path).reshape(-1), True)
        return
    dtype = opened.dtype(path)
    merge = merging_into(opened, path)
    # Adapters are merged matrix by matrix.
    unit = want.unit if merge is None else math.lcm(want.unit, math.prod(store.header.shape[-2:]))
    read = _one_stream(store) if store.header.is_one_stream else _runs(store)

    def make(start: int, stop: int, memory: Array | None) -> Array:
        assert memory is not None
        out = memory[: (stop - start) * dtype.itemsize].view(dtype)
        try:
            read(start, out)
        except (OSError, *DAMAGE) as error:
            raise damaged(opened.source, f"{path}: {first_line(error)}") from error
        if merge is not None:
            merge(start, out)
        check_finite(opened.source, path, out)
        return out

    for start, stop in spans(store, unit):
        yield _Task(
            path,
            start,
            (stop - start) * dtype.itemsize,
            lambda memory, start=start, stop=stop: make(start, stop, memory),  # type: ignore[misc]
            in_order=store.header.is_one_stream,
        )


def _is_large(store: Stored) -> bool:
    return store.nbytes > chunks.STREAMED_BYTES


def spans(store: Stored, unit: int) -> list[tuple[int, int]]:
    """(first element, the element after the last) of each block, of about 64 MiB.

    They are multiples of `unit`. No chunk lies in two blocks, unless the array is one stream.
    """
    size = math.prod(store.header.shape)
    most = _BLOCK_BYTES // np.dtype(store.store.dtype.numpy_dtype).itemsize
    if store.header.is_one_stream:
        step = max(most // unit, 1) * unit
        return [(start, min(start + step, size)) for start in range(0, size, step)]
    ends = [run.stop for run, _ in _in_order(store) if run.stop % unit == 0]
    found, start = [], 0
    for end, following in pairwise([*ends, size + most + 1]):
        if following - start > most:
            found.append((start, end))
            start = end
    return found


def _in_order(store: Stored) -> list[tuple[slice, tuple[int, ...]]]:
    """(its elements in the flat array, its index) of each chunk, which are runs."""
    return [(store.header.run(index), index) for index in np.ndindex(*store.header.grid)]


def _runs(store: Stored) -> Callable[[int, Array], None]:
    """What fills a flat array from an element on, of whole chunks."""
    runs = _in_order(store)

    def read(start: int, out: Array) -> None:
        for run, index in runs:
            if start <= run.start < start + out.size:
                read_run(store, index, out[run.start - start : run.stop - start], to_its_end=True)

    return read


def _one_stream(store: Stored) -> Callable[[int, Array], None]:
    """What fills a flat array with the next elements of the stream."""
    stream: list[Stream] = []
    size = math.prod(store.header.shape)

    def read(start: int, out: Array) -> None:
        if not start:
            stream.append(Stream(store, (0,) * len(store.header.shape)))
        stream[0].read(out)
        if start + out.size == size:
            stream.pop().__exit__()

    return read
