"""Writes a safetensors file tensor by tensor: the header first, then each tensor's rows as they come.

Each row is made in its place in a buffer, from which it is hashed and written (`harness.checkpoint.sink`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorstore as ts

from harness.checkpoint.rows import Rows, plain_rows
from harness.checkpoint.safetensors import NAMES
from harness.checkpoint.sink import Sink

Array = np.ndarray[Any, Any]
Dtype = Literal["bfloat16", "float32"]
Progress = Callable[[int, int], None]
# Offsets of the format are counted from the end of the header, whose length is a multiple of this.
_ALIGNMENT = 8


class Planned(NamedTuple):
    """A tensor that the header names before its elements are known."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Written(NamedTuple):
    """Size and digest of a finished file."""

    nbytes: int
    sha256: str


def write_tensors(
    path: Path,
    planned: list[Planned],
    arrays: Iterable[tuple[str, Array]],
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Writes the new file `path`: the `arrays` in the `planned` order, cast to their types.

    `progress` is told the bytes written, and all bytes.
    Raises: ValueError if the arrays are not those that were planned; OSError as `write`.
    """
    return write_rows(path, planned, _as_planned(planned, arrays), metadata=metadata, progress=progress)


def write_rows(
    path: Path,
    planned: list[Planned],
    rows: Iterable[Rows],
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Writes the new file `path`: the `rows` of each tensor in the `planned` order, cast to their types.

    `progress` and errors are those of `write_tensors`.
    """
    header = _header(planned, metadata)
    total = len(header) + sum(each.nbytes for each in planned)
    with path.open("xb", buffering=0) as file, Sink(file.fileno()) as sink:
        _add(sink, plain_rows("", np.frombuffer(header, np.uint8)), np.dtype(np.uint8))
        given = iter(rows)
        for want in planned:
            left = math.prod(want.shape)
            while left:
                each = next(given, None)
                if each is None or each.name != want.name or not 0 < each.height * each.width <= left:
                    raise ValueError(f"{each and each.name} instead of {left} elements of {want.name}")
                _add(sink, each, np.dtype(want.dtype))
                left -= each.height * each.width
                # What they are made of is freed before the next ones are taken.
                del each
                if progress is not None:
                    progress(sink.nbytes, total)
        if next(given, None) is not None:
            raise ValueError("more arrays than were planned")
        return Written(total, sink.finish())


def _as_planned(planned: list[Planned], arrays: Iterable[tuple[str, Array]]) -> Iterator[Rows]:
    given = iter(arrays)
    for want in planned:
        name, array = next(given, ("nothing", np.empty(0)))
        if (name, array.shape) != (want.name, want.shape):
            raise ValueError(f"{name} {array.shape} instead of {want.name} {want.shape}")
        if array.size:
            yield plain_rows(name, array)
        # Freed before the next one is made.
        del array
    if next(given, None) is not None:
        raise ValueError("more arrays than were planned")


def _add(sink: Sink, rows: Rows, dtype: np.dtype[Any]) -> None:
    row_bytes = rows.width * dtype.itemsize
    done = 0
    while done < rows.height:
        space = sink.space(row_bytes)
        taken = min(rows.height - done, space.size // row_bytes)
        out = space[: taken * row_bytes].view(dtype).reshape(taken, rows.width)
        rows.fill(done, done + taken, out)
        sink.wrote(out.nbytes)
        done += taken


def _header(planned: list[Planned], metadata: Mapping[str, str] | None) -> bytes:
    body: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for each in planned:
        body[each.name] = {
            "dtype": NAMES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [end, end + each.nbytes],
        }
        end += each.nbytes
    text = json.dumps(body, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def cast(block: Array, dtype: np.dtype[Any]) -> Array:
    """`block` as `dtype`, rounded to the nearest; tensorstore is three times as fast as numpy at it."""
    if block.dtype == dtype:
        return block
    return np.asarray(ts.cast(ts.array(block), ts.dtype(dtype.name)).read().result())
