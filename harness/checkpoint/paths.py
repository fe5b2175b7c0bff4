"""Converts between a leaf's path and openpi's nested form, and gives the path of every leaf on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` → `{"a": {"b": {"value": x}}}`, the form of flax's state that openpi saves."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = {"value": leaf}
    return tree


def leaf_paths(tree: Any) -> list[str]:
    """The path on disk of every leaf of a training state, in the order of `jax.tree.leaves`."""
    return [_path(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _path(keys: tuple[Any, ...]) -> str:
    names = [
        str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name))) for key in keys
    ]
    return "/".join(names) + ("/value" if "/" in names[-1] else "")


def nested_state(state: Any) -> Any:
    """`state` with every dict over parameter paths nested."""

    def is_flat(node: Any) -> bool:
        return isinstance(node, dict) and any("/" in key for key in node)

    def nest(node: Any) -> Any:
        if not is_flat(node):
            return node
        return {key: leaf for key, leaf in node.items() if "/" not in key} | nested(
            {key: leaf for key, leaf in node.items() if "/" in key}
        )

    return jax.tree.map(nest, state, is_leaf=is_flat)


def flat(tree: Any) -> dict[str, Any]:
    """Path on disk → leaf of an item."""
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def nbytes(tree: Any) -> int:
    """Bytes of all leaves of `tree`."""
    return sum(
        math.prod(np.shape(leaf)) * np.dtype(getattr(leaf, "dtype", np.int64)).itemsize
        for leaf in jax.tree.leaves(tree)
    )
