"""Finds the LoRA adapters of a parameter tree, and measures their product.

Adapters are found by the tree's own paths, never by file names.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from harness.artifacts import AdapterReport, LoraReport
from harness.checkpoint.deep import UNREADABLE, blocks, root
from harness.checkpoint.item import Array, Item
from harness.recipe.parameters import Group, group_of

ADAPTER = re.compile(r"(?:^|[/_])lora_([ab])$")
# Far more than adapters of π0.5 have (9 million elements at rank 16), and few enough to hold both factors.
_MOST_ELEMENTS = 2**26
_LARGEST_RANK = 1024
# Factors beyond 2**300 are divided by a power of two before they are multiplied: their product may be beyond
# float64, and its effective rank is not.
_LARGEST_EXPONENT = 300
MODULES = {"language": "PaliGemma", "expert": "action expert", "vision": "vision"}
PARTS = {"attn": "attention", "mlp": "feed-forward"}


def find_lora(parameters: Mapping[str, Array]) -> tuple[LoraReport, list[str]]:
    """(adapters and their rank per module, findings).

    The rank is the last axis of each `lora_a`. A module whose ranks differ is listed leaf by leaf.
    """
    adapters = {path: array for path, array in parameters.items() if ADAPTER.search(path)}
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    findings = []
    for path, array in adapters.items():
        other = partner(path)
        if other not in adapters:
            findings.append(f"adapter {path} has no {other.rpartition('/')[2]}")
        elif len(array.shape) < 2 or len(adapters[other].shape) < 2:
            findings.append(f"adapter {path} is not a matrix")
        elif path.endswith("a") and array.shape[-1] != adapters[other].shape[-2]:
            findings.append(
                f"adapter {path} has rank {array.shape[-1]}, its partner {adapters[other].shape[-2]}"
            )
        if path.endswith("a") and array.shape:
            ranks[_module(path)][ADAPTER.sub("", path)] = array.shape[-1]
    rank: dict[str, int] = {}
    for module, found in sorted(ranks.items()):
        rank |= {module: next(iter(found.values()))} if len(set(found.values())) == 1 else found
    return (
        LoraReport(
            present=bool(adapters), rank=rank, parameters=sum(array.size for array in adapters.values())
        ),
        findings,
    )


def partner(path: str) -> str:
    """The path of the other half of the pair."""
    return path[:-1] + ("b" if path.endswith("a") else "a")


def adapted(path: str) -> str:
    """The path of the weight that the adapter at `path` adapts."""
    return (
        path.removesuffix("/" + path.rpartition("/")[2]) + "/w"
        if path.endswith(("/lora_a", "/lora_b"))
        else ADAPTER.sub("", path)
    )


def base_group(path: str) -> Group:
    """The group whose weights the adapter at `path` adapts."""
    return group_of(path.replace("lora_", ""))


def _module(path: str) -> str:
    """ "PaliGemma attention" for `PaliGemma/llm/layers/attn/q_einsum/lora_a`; in another tree the path."""
    part = re.search(r"/(attn|mlp)(_1)?/", path)
    base = base_group(path)
    return f"{MODULES[base]} {PARTS[part[1]]}" if part and base in MODULES else ADAPTER.sub("", path)


class Product(NamedTuple):
    """A·B of one pair of adapters.

    `squares`: sums of squares of its elements, one entry a layer; infinity where that is beyond float64.
    `singular`: singular values [matrices, rank], for very large ones up to a common factor.
    """

    path: str
    rank: int
    squares: np.ndarray
    singular: np.ndarray


def product(item: Item, parameters: Mapping[str, Array], path: str) -> Product | None:
    """The product that the pair whose first half is `path` adds to its weight, before alpha/rank.

    None if it is no pair, or cannot be read. The singular values of A·B are those of Ra·Rbᵀ, where A = Qa·Ra
    and Bᵀ = Qb·Rb, so no matrix is larger than the adapters.
    """
    a, b = parameters[path], parameters.get(partner(path))
    if b is None or len(a.shape) < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    if max(a.size, b.size) > _MOST_ELEMENTS or a.shape[-1] > _LARGEST_RANK:
        return None
    try:
        left, right = (
            np.concatenate(list(blocks(item, array))).astype(np.float64).reshape(array.shape)
            for array in (a, b)
        )
    except UNREADABLE:
        return None
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return None
    (left, below), (right, below_too) = _scaled(left), _scaled(right)
    if "attn_vec_einsum" in path and right.ndim > 2:
        # The heads share one bottleneck: head n adds lora_a[n] · Σₘ lora_b[m].
        right = np.broadcast_to(right.sum(axis=-3, keepdims=True), right.shape)
    ra, rb = (np.asarray(np.linalg.qr(each, mode="r")) for each in (left, right.swapaxes(-1, -2)))
    singular: np.ndarray = np.linalg.svd(ra @ rb.swapaxes(-1, -2), compute_uv=False)
    singular = singular.reshape(-1, singular.shape[-1])
    layers = a.shape[0] if len(a.shape) > 2 else 1
    with np.errstate(over="ignore"):
        squares = (np.ldexp(singular, below + below_too) ** 2).reshape(layers, -1).sum(axis=1)
    return Product(ADAPTER.sub("", path), a.shape[-1], squares, singular)


def _scaled(factor: np.ndarray) -> tuple[np.ndarray, int]:
    """(`factor` / 2**n, n): n is the least that leaves no element beyond 2**300, and 0 for usual values."""
    exponent = int(np.frexp(np.abs(factor).max(initial=0.0))[1])
    below = max(0, exponent - _LARGEST_EXPONENT)
    return (np.ldexp(factor, -below) if below else factor), below


def effective_ranks(singular: np.ndarray) -> np.ndarray:
    """exp(-Σ p·log p) of p = s / Σs, for each matrix; 0 for a matrix of zeros.

    Shapes: singular [matrices, rank] → [matrices].
    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    total = singular.sum(axis=-1, keepdims=True)
    p = np.divide(singular, total, out=np.zeros_like(singular), where=total > 0)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def report(found: Product, weight_norm: float | None) -> AdapterReport:
    """One pair's report. `weight_norm` is that of the adapted weight, if known."""
    with np.errstate(over="ignore"):
        norm = root(float(found.squares.sum()))
    ranks = effective_ranks(found.singular)
    spread = (float(ranks.min()), float(np.median(ranks)), float(ranks.max())) if norm != 0 else None
    relative = norm / weight_norm if norm is not None and weight_norm else None
    return AdapterReport(
        path=found.path,
        rank=found.rank,
        effective_rank=spread,
        product_norm=norm,
        relative=relative if relative is not None and math.isfinite(relative) else None,
    )
