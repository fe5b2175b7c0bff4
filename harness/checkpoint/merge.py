"""Reads the parameters of a checkpoint leaf by leaf, with its adapters merged into the weights they adapt.

    w' = w + alpha / rank · lora_a @ lora_b                   on the last two axes
    w'[n] = w[n] + alpha / rank · lora_a[n] @ Σₘ lora_b[m]    attn_vec_einsum: heads share a bottleneck

Computed in float64 and rounded once, so that each merged weight is the float32 nearest to the exact sum.
Of what `arrays` gives, host memory holds the largest leaf and half as much again, and not the model;
`harness.checkpoint.blocks` holds less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.source import damaged
from harness.checkpoint.weights import check_parameters, is_finite, parameter_leaves, params_directories
from harness.errors import HarnessError
from harness.recipe.parameters import group_of, parameter_shapes
from harness.recipe.schema import Model

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
# Half a million numbers in float64, 4 MiB, stay in the cache.
_BLOCK_ELEMENTS = 2**19
# Path of an adapted weight → (path of lora_a, path of lora_b, alpha / rank).
Adapters = Mapping[str, tuple[str, str, float]]


class Adding(Protocol):
    """Further adapters that are added to a checkpoint (see `harness.checkpoint.adding`)."""

    def touching(self, path: str) -> list[Any]:
        """The sets of adapters that change the parameter at `path`."""

    def add(self, path: str, w: Array) -> None:
        """Adds what they change of the float32 leaf `w` at `path`, in place."""


class Merging(NamedTuple):
    """An opened checkpoint of a model: its leaves, and which of them are merged.

    `locations` are the directories or files that were opened, what lies on top first.
    """

    source: Path
    locations: list[Path]
    leaves: Mapping[str, Leaf]
    shapes: Mapping[str, Shape]
    adapters: Adapters
    additions: Adding | None = None

    @property
    def kept(self) -> list[str]:
        """The paths of the parameters that are left when the adapters are merged."""
        return [path for path in self.shapes if "lora" not in path]

    @property
    def merged(self) -> list[str]:
        return [path for path in self.kept if self.changes(path)]

    def changes(self, path: str) -> bool:
        """Whether adapters change the kept parameter at `path`."""
        return path in self.adapters or (self.additions is not None and bool(self.additions.touching(path)))

    def dtype(self, path: str) -> np.dtype[Any]:
        """The type of a kept parameter: as stored, or float32 if it is merged."""
        return np.dtype(np.float32) if self.changes(path) else self.leaves[path].dtype

    def nbytes(self, itemsize: int | None = None) -> int:
        """Bytes of all kept parameters, in their own types or at `itemsize` bytes each."""
        return sum(
            math.prod(self.shapes[path]) * (itemsize or self.dtype(path).itemsize) for path in self.kept
        )


def open_merging(source: Path, model: Model, *, base: str | Path | None = None) -> Merging:
    """The checkpoint at `source`, opened; only metadata is read.

    Raises: HarnessError "weights-mismatch", and those of `params_directories`.
    """
    locations = params_directories(source, base=base)
    shapes = parameter_shapes(model)
    leaves: dict[str, Leaf] = {}
    for location in reversed(locations):
        leaves |= parameter_leaves(location, shapes)
    check_parameters(source, leaves, shapes)
    return Merging(Path(source), locations, leaves, shapes, adapters_of(model))


def arrays(opened: Merging, paths: Iterable[str] | None = None) -> Iterator[tuple[str, Array]]:
    """(path, array) of each kept parameter, one after the other, with adapters merged.

    While one is used, a thread reads the next one, if both together are at most 1.5 of the largest leaf.
    Raises: HarnessError "weights-not-finite", "checkpoint-damaged".
    """
    order = list(opened.kept if paths is None else paths)
    sizes = [math.prod(opened.shapes[path]) * opened.dtype(path).itemsize for path in order]
    most = 3 * max(sizes, default=0) // 2
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Array] | None = None
        for n, path in enumerate(order):
            array = whole(opened, path) if ahead is None else ahead.result()
            following = order[n + 1 : n + 2] if sum(sizes[n : n + 2]) <= most else []
            ahead = pool.submit(whole, opened, following[0]) if following else None
            yield path, array
            # Freed before the next leaf is taken.
            del array


def whole(opened: Merging, path: str) -> Array:
    """The kept parameter at `path`, with what adapters change of it.

    Raises: HarnessError "weights-not-finite", "checkpoint-damaged".
    """
    array = (
        _merged(opened, path, *opened.adapters[path])
        if path in opened.adapters
        else read_leaf(opened.source, opened.leaves, path)
    )
    if opened.additions is not None and opened.additions.touching(path):
        array = array.astype(np.float32, copy=False)
        opened.additions.add(path, array)
    check_finite(opened.source, path, array)
    return array


def read_leaf(
    source: Path, leaves: Mapping[str, Leaf], path: str, dtype: np.dtype[Any] | None = None
) -> Array:
    """The leaf at `path` of `source`, as stored or as `dtype`.

    Raises: HarnessError "checkpoint-damaged"; UnsafeFile.
    """
    try:
        return leaves[path].read(dtype)
    except (OSError, *DAMAGE) as error:
        raise damaged(source, f"{path}: {first_line(error)}") from error


def check_finite(source: Path, path: str, array: Array) -> None:
    """Refuses a leaf of `source` that is not finite, because an export is made to be used.

    Raises: HarnessError "weights-not-finite".
    """
    if not is_finite(array):
        raise HarnessError(
            "weights-not-finite",
            f"{source} holds NaN or infinity in {path}",
            need="finite weights",
            fix="export an earlier step of that run",
        )


def adapters_of(model: Model) -> Adapters:
    """The adapters of `model`, whose leaves have been checked to be of its shapes."""
    found = {}
    for first in parameter_shapes(model):
        if not first.endswith("lora_a"):
            continue
        # Einsums hold `w` beside `lora_a`. The feed-forward's adapters begin with the weight's name.
        path = (
            f"{first.removesuffix('lora_a')}w" if first.endswith("/lora_a") else first.removesuffix("_lora_a")
        )
        lora = (model.action_expert if group_of(path) == "expert" else model.paligemma).lora
        assert lora is not None
        found[path] = (
            first,
            f"{first.removesuffix('a')}b",
            lora.feed_forward_scale() if "/mlp" in path else lora.alpha / lora.rank,
        )
    return found


def _merged(opened: Merging, path: str, first: str, second: str, scale: float) -> Array:
    """The float32 weight at `path` with its adapters."""
    w, a, b = (
        read_leaf(opened.source, opened.leaves, name, np.dtype(np.float32)) for name in (path, first, second)
    )
    add_product(w, a, b, scale, path)
    return w


def merging_into(opened: Merging, path: str) -> Callable[[int, Array], None] | None:
    """What adds the adapters of the weight at `path` to its flat elements from one on; None if it has none.

    The elements are float32, of whole matrices.
    """
    if path not in opened.adapters:
        return None
    first, second, scale = opened.adapters[path]
    a, b = (read_leaf(opened.source, opened.leaves, name, np.dtype(np.float32)) for name in (first, second))
    shape = opened.shapes[path]
    factors = _factors(b, shape, path)

    def add(start: int, flat: Array) -> None:
        matrices = flat.reshape(-1, *shape[-2:])
        for number, matrix in enumerate(matrices, start // math.prod(shape[-2:])):
            index = np.unravel_index(number, shape[:-2])
            add_matrices(matrix, a[index], factors[index], scale)

    return add


def add_product(w: Array, a: Array, b: Array, scale: float, path: str) -> None:
    """Adds scale · a @ b to the float32 weight `w` at `path`, in place."""
    factors = _factors(b, w.shape, path)
    for index in np.ndindex(*w.shape[:-2]):
        add_matrices(w[index], a[index], factors[index], scale)


def _factors(b: Array, shape: Shape, path: str) -> Array:
    """The second factor of each matrix of a weight of this shape."""
    if "/attn_vec_einsum" in path:
        # attn_vec_einsum sums over heads, and so does each of its two factors: x·A has no head left to select
        # a B by (harness/model/lora.py).
        b = b.sum(axis=1, keepdims=True, dtype=np.float64)  # [L, 1, R, D]
    return np.broadcast_to(b, (*shape[:-2], *b.shape[-2:]))


def add_matrices(matrix: Array, a: Array, b: Array, scale: float) -> None:
    """Adds scale · a @ b to the float32 `matrix`, in place. A few rows of it are in float64 at a time."""
    left, right = scale * a.astype(np.float64), b.astype(np.float64)
    step = max(_BLOCK_ELEMENTS // matrix.shape[1], 1)
    for start in range(0, len(matrix), step):
        block = left[start : start + step] @ right
        block += matrix[start : start + step]
        matrix[start : start + step] = block
