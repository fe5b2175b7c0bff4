"""Adam with moments in the published codes of 8 bits, in numpy.

benchmarks/approximate_levers.py compares the harness's own codes with it. A value is 10^-e times a fraction
in (0.1, 1): each decade has half the fractions of the one above it, seven decades in all, besides 0 and 1.
Each block of 256 shares a scale. A leaf of fewer than 4,096 elements is left as it is.

Source: "dynamic tree quantization" of https://arxiv.org/abs/2110.02861, with the table of bitsandbytes
`create_dynamic_map`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.recipe.schema import Optimizer
from harness.train.optimizer import learning_rate

PUBLISHED = "(the same in the published codes of 8 bits, dynamic trees)"

Array = np.ndarray[Any, Any]


def dynamic_code(*, signed: bool) -> Array:
    """The 256 values in [-1, 1] (or [0, 1]) that 8 bits stand for, ascending, float32."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1)
        fractions = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*fractions, *(-fractions if signed else ())]
    return np.sort(np.array(values, np.float32))


def rounded(x: Array, *, signed: bool) -> Array:
    """x as it is kept: the nearest code value times the largest |x| of its block along the last axis."""
    if x.size < 4096:
        return x
    code, out = dynamic_code(signed=signed), np.empty_like(x)
    middles = (code[:-1] + code[1:]) / 2
    for start in range(0, x.shape[-1], 256):
        block = x[..., start : start + 256]
        scale = np.abs(block).max(-1, keepdims=True)
        out[..., start : start + 256] = (
            code[np.searchsorted(middles, block / np.where(scale > 0, scale, 1))] * scale
        )
    # A second moment that is not 0 must not become 0: it would divide by eps.
    return out if signed else np.where((x > 0) & (out == 0), _smallest(x), out)


def _smallest(x: Array) -> Array:
    scale = np.concatenate(
        [
            np.broadcast_to(b.max(-1, keepdims=True), b.shape)
            for b in np.split(x, range(256, x.shape[-1], 256), axis=-1)
        ],
        axis=-1,
    )
    return np.float32(3.25e-7) * scale


def published_updates(
    recipe: Optimizer, gradients: list[dict[str, Array]], params: dict[str, Array]
) -> list[dict[str, Array]]:
    """The updates of AdamW with moments that are kept so, one after the other, at parameters that stay."""
    rate, made = learning_rate(recipe.schedule), []
    first, second = ({path: np.zeros_like(x) for path, x in params.items()} for _ in range(2))
    for t, gradient in enumerate(gradients, start=1):
        updates = {}
        for path, g in gradient.items():
            m, v = (
                recipe.b1 * first[path] + (1 - recipe.b1) * g,
                recipe.b2 * second[path] + (1 - recipe.b2) * np.square(g),
            )
            u = m / (1 - recipe.b1**t) / (np.sqrt(v / (1 - recipe.b2**t)) + recipe.eps)
            updates[path] = (-float(rate(t - 1)) * (u + recipe.weight_decay * params[path])).astype(
                np.float32
            )
            first[path], second[path] = (
                rounded(m.astype(np.float32), signed=True),
                rounded(v.astype(np.float32), signed=False),
            )
        made.append(updates)
    return made
