"""Measures which parts of the network moved between two sets of parameters, and by how much.

Both sets are streamed, so no leaf is ever whole in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from harness.artifacts import Moved, Movement
from harness.checkpoint.adapters import ADAPTER, Product, adapted, base_group
from harness.checkpoint.deep import UNREADABLE, blocks, holds_values, root, total
from harness.checkpoint.format import GROUPS
from harness.checkpoint.item import Array, Item
from harness.recipe.parameters import group_of

# More layers than any network has. A longer first axis is not a layer axis.
_MOST_LAYERS = 1000
_STACKED = re.compile(r"/(layers|encoderblock)/")
_PARTS = (
    ("attention", re.compile(r"/attn/|Attention")),
    ("feed-forward", re.compile(r"/mlp(_1)?/|MlpBlock")),
    ("norms", re.compile(r"[Nn]orm")),
    ("embedding", re.compile(r"embed")),
)


class Tree(NamedTuple):
    """The parameters of a step; `origin` is their path."""

    item: Item
    parameters: Mapping[str, Array]
    origin: str
    step: int | None


class _Sums(NamedTuple):
    """Sums over a leaf, one entry a layer.

    `update`: squares of the difference. `base`: squares of the other's values. `changed`: how many elements
    differ.
    """

    update: np.ndarray
    base: np.ndarray
    changed: np.ndarray
    elements: int


def block_of(path: str) -> str:
    """The part of the network that a parameter belongs to, such as "expert feed-forward".

    It is finer than the parameter's group.
    """
    group = base_group(path) if ADAPTER.search(path) else group_of(path)
    if group == "projections":
        return path.partition("/")[0]
    part = next((name for name, pattern in _PARTS if pattern.search(path)), "head")
    return f"{group} {part}" + (" adapters" if ADAPTER.search(path) else "")


def layers_of(path: str, array: Array) -> int:
    """The number of layers in a stacked leaf, along its first axis; 1 for any other leaf."""
    stacked = _STACKED.search(path) and len(array.shape) > 1 and array.size and array.shape[0] <= _MOST_LAYERS
    return array.shape[0] if stacked else 1


def compare_parameters(
    here: Tree,
    there: Tree,
    products: list[Product],
    scales: Mapping[str, float] | None,
    trained: set[str] | None = None,
) -> Moved:
    """The movement of `here` from `there`.

    `products` are those of the adapters of `here`. `scales` are their alpha/rank by path, if known.

    `trained` are the paths that are expected to have moved.
    """
    sums, not_compared = _common(here, there)
    rounded = [path for path in sums if here.parameters[path].dtype != there.parameters[path].dtype]
    new = [
        each
        for each in products
        if f"{each.path}/lora_a" not in there.parameters and f"{each.path}_lora_a" not in there.parameters
    ]
    sums |= {
        path: found
        for each in new
        if (found := _of_product(each, path := _adapter_path(here, each), there, sums, scales))
    }
    notes = []
    if rounded:
        notes.append(
            f"{len(rounded)} parameters are stored in another dtype there: the finer was rounded to the"
            " coarser first"
        )
    if new:
        known = (
            "times alpha/rank of the recipe"
            if scales is not None
            else "without alpha/rank, which no recipe here tells"
        )
        notes.append(
            f"adapters that the other side lacks count as A·B {known}, relative to the weight that they adapt"
        )
    return Moved(
        against=there.origin,
        against_step=there.step,
        groups=_movements({group: [p for p in sums if group_of(p) == group] for group in GROUPS}, sums),
        blocks=list(_blocks(sums)),
        only_here=sorted(here.parameters.keys() - there.parameters.keys()),
        only_there=sorted(there.parameters.keys() - here.parameters.keys()),
        not_compared=sorted(not_compared),
        notes=[*notes, *_still(sums, trained)],
    )


def _common(here: Tree, there: Tree) -> tuple[dict[str, _Sums], list[str]]:
    """(the sums of every parameter that both have, the paths that cannot be compared)."""
    sums: dict[str, _Sums] = {}
    not_compared = []
    for path in (path for path in here.parameters if path in there.parameters):
        a, b = here.parameters[path], there.parameters[path]
        if a.shape != b.shape or not (holds_values(a.dtype) and holds_values(b.dtype)):
            not_compared.append(path)
            continue
        try:
            sums[path] = _sums(here.item, a, there.item, b, layers_of(path, a))
        except UNREADABLE:
            not_compared.append(path)
    return sums, not_compared


def _still(sums: Mapping[str, _Sums], trained: set[str] | None) -> list[str]:
    """Notes if nothing moved, or if a trained array did not move."""
    notes = []
    if sums and not any(found.update.any() for found in sums.values()):
        notes.append("nothing moved: every number that was compared is the same")
    still = sorted(path for path in trained or () if path in sums and not sums[path].update.any())
    if still:
        notes.append(
            f"{len(still)} arrays were trained, and yet no number of them moved: {', '.join(still[:5])}"
        )
    return notes


def _sums(item: Item, a: Array, other: Item, b: Array, layers: int) -> _Sums:
    coarse = _coarser(a.dtype, b.dtype)
    update, base, changed = (np.zeros(layers) for _ in range(3))
    each, start = max(a.size // layers, 1), 0
    for left, right in zip(blocks(item, a), blocks(other, b), strict=True):
        x, y = _rounded(left, coarse), _rounded(right, coarse)
        differs = x != y
        finite = np.isfinite(x) & np.isfinite(y)
        first = start // each
        cuts = [max(0, layer * each - start) for layer in range(first, (start + x.size - 1) // each + 1)]
        touched = slice(first, first + len(cuts))
        # Sums of finite values that are beyond float64 are infinite, and their norm is None.
        with np.errstate(over="ignore", invalid="ignore"):
            update[touched] += np.add.reduceat(np.where(finite, x - y, 0.0) ** 2, cuts)
            base[touched] += np.add.reduceat(np.where(finite, y, 0.0) ** 2, cuts)
        changed[touched] += np.add.reduceat(differs.astype(np.float64), cuts)
        start += x.size
    return _Sums(update, base, changed, a.size)


def _coarser(*dtypes: str) -> np.dtype:
    """The dtype with the fewest mantissa bits."""
    return min((np.dtype(name) for name in dtypes), key=lambda dtype: int(ml_dtypes.finfo(dtype).nmant))  # type: ignore[no-untyped-call]


def _rounded(part: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (part if part.dtype == dtype else part.astype(dtype)).astype(np.float64)


def _adapter_path(here: Tree, found: Product) -> str:
    return next(
        path for path in (f"{found.path}/lora_a", f"{found.path}_lora_a", "lora_a") if path in here.parameters
    )


def _of_product(
    found: Product, path: str, there: Tree, sums: Mapping[str, _Sums], scales: Mapping[str, float] | None
) -> _Sums | None:
    """The change from a pair of adapters, as a movement of the weight that it adapts.

    None if that weight cannot be read anywhere.
    """
    weight = adapted(path)
    if weight in sums:
        base = sums[weight].base
    elif weight in there.parameters:
        try:
            base = _squares(there.item, there.parameters[weight], len(found.squares))
        except UNREADABLE:
            return None
    else:
        return None
    if len(base) != len(found.squares):
        return None
    scale = 1.0 if scales is None else scales.get(path, 1.0)
    size = there.parameters[weight].size
    moved = found.squares > 0
    return _Sums(found.squares * (scale * scale), base, moved * (size / len(base)), size)


def _squares(item: Item, array: Array, layers: int) -> np.ndarray:
    sums, each, start = np.zeros(layers), max(array.size // layers, 1), 0
    for part in blocks(item, array):
        first = start // each
        cuts = [max(0, layer * each - start) for layer in range(first, (start + part.size - 1) // each + 1)]
        with np.errstate(over="ignore", invalid="ignore"):
            sums[first : first + len(cuts)] += np.add.reduceat(part.astype(np.float64) ** 2, cuts)
        start += part.size
    return sums


def _movements(members: Mapping[str, list[str]], sums: Mapping[str, _Sums]) -> list[Movement]:
    return [
        _movement(name, None, [(sums[path], slice(None)) for path in paths])
        for name, paths in members.items()
        if paths
    ]


def _blocks(sums: Mapping[str, _Sums]) -> Iterator[Movement]:
    """One movement for each finer part; one for each layer if the leaves are stacked."""
    parts: dict[str, dict[int | None, list[tuple[_Sums, slice]]]] = {}
    for path, found in sums.items():
        layers = len(found.update)
        stacked = layers > 1 or _STACKED.search(path) is not None
        for layer in range(layers):
            parts.setdefault(block_of(path), {}).setdefault(layer if stacked else None, []).append(
                (found, slice(layer, layer + 1))
            )
    for name in sorted(
        parts,
        key=lambda name: (
            next((i for i, group in enumerate(GROUPS) if name.startswith(group)), len(GROUPS)),
            name,
        ),
    ):
        for key, members in sorted(parts[name].items(), key=lambda pair: -1 if pair[0] is None else pair[0]):
            yield _movement(name, key, members)


def _movement(name: str, layer: int | None, members: list[tuple[_Sums, slice]]) -> Movement:
    update, base, changed = (
        total(float(getattr(found, field)[part].sum()) for found, part in members)
        for field in ("update", "base", "changed")
    )
    elements = sum(found.elements * len(found.update[part]) // len(found.update) for found, part in members)
    both = math.isfinite(update) and math.isfinite(base)
    return Movement(
        name=name,
        layer=layer,
        update_norm=root(update),
        base_norm=root(base),
        relative=root(update / base) if both and base else None,
        changed=changed / elements if elements else 0.0,
        parameters=elements,
    )
