"""Makes the tensors of PyTorch a few rows at a time, in the memory from which they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from harness.checkpoint.pytorch_names import Part, matrices, moves, transpose_into

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


class Rows(NamedTuple):
    """The next `height` rows of the tensor `name`, in C order, each of `width` elements.

    `fill(start, stop, out)` writes the rows from `start` to `stop` to `out` [stop - start, width], in its
    type. It reads memory that may hold something else once the next Rows are taken.
    """

    name: str
    height: int
    width: int
    fill: Callable[[int, int, Array], None]


def plain_rows(name: str, values: Array) -> Rows:
    """The elements of `values` as they are; one number seen at each index is not made any larger."""
    if values.size and not any(values.strides):
        number = values.reshape(-1)[:1]
        return Rows(name, values.size, 1, lambda _, __, out: np.copyto(out, number.astype(out.dtype)))
    flat = np.ascontiguousarray(values).reshape(-1, 1)
    return Rows(
        name, values.size, 1, lambda start, stop, out: np.copyto(out, flat[start:stop], casting="unsafe")
    )


def turned_rows(name: str, view: Array, part: Part) -> Rows:
    """The tensor `part`, of which `view` has the elements in our order."""
    flat = matrices(view.shape, part.axes)
    if flat is None:
        return plain_rows(name, view.transpose(part.axes))
    count, rows, columns = flat
    each = view.reshape(flat)

    def fill(start: int, stop: int, out: Array) -> None:
        done = start
        while done < stop:
            number, first = divmod(done, columns)
            last = min(columns, first + stop - done)
            transpose_into(each[number][:, first:last], out[done - start : done - start + last - first])
            done += last - first

    return Rows(name, count * columns, rows, fill)


def unit_of(parts: list[Part], shape: Shape) -> int:
    """How many elements of a leaf of this shape with these parts are needed together."""
    own = shape[len(parts[0].at) :]
    return math.prod(own) if moves(parts[0].axes) else 1


def rows_of(parts: list[Part], shape: Shape, start: int, values: Array) -> Iterator[tuple[Part, Rows]]:
    """Each part that the flat `values`, the leaf's elements from `start` on, hold; or what they hold of it.

    `shape` is the leaf's. Begin and end must be multiples of `unit_of`.
    """
    own = shape[len(parts[0].at) :]
    size, done = math.prod(own), 0
    while done < values.size:
        number, first = divmod(start + done, size)
        taken = values[done : done + size - first]
        part = parts[number]
        yield (
            part,
            turned_rows(part.name, taken.reshape(own), part)
            if moves(part.axes)
            else plain_rows(part.name, taken),
        )
        done += taken.size
