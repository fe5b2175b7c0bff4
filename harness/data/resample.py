"""Bilinear resizing as Pillow does it, as integer weights for each output pixel, exact to the last bit.

Pillow makes a row of N pixels into a row of M pixels with output[m] = (Σ weight[m, k] · input[index[m, k]] +
2²¹) >> 22. It does so along one axis, rounds to uint8, and then does so along the other axis. So code on any
device that uses these numbers gets Pillow's pixels. For a square the width comes first. Other shapes are left
to Pillow itself.

Source: python-pillow/Pillow src/libImaging/Resample.c `precompute_coeffs` and `normalize_coeffs_8bpc`,
release 12.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Bits of a weight's fraction: 32, less 8 for the pixel and 2 for head room.
BITS = 22


class Fit(NamedTuple):
    """The size of a resized picture, and its offset (`top`, `left`) in a black square."""

    height: int
    width: int
    top: int
    left: int


def fit(height: int, width: int, size: int) -> Fit:
    """Size and offset of a picture of height × width in a square of `size`, with its aspect ratio kept.

    Equal to openpi's resize_with_pad.
    """
    ratio = max(width / size, height / size)
    # A very long image would vanish, so at least one pixel is kept.
    small = max(1, int(height / ratio)), max(1, int(width / ratio))
    return Fit(*small, (size - small[0]) // 2, (size - small[1]) // 2)


@lru_cache(maxsize=64)
def weights(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of the input pixels of each of `after` output pixels, from `before` input pixels.

    Shapes: index [after, K] int32, within the row; weight [after, K] int32 in units of 2⁻²², 0 where a pixel
    has fewer than K.
    """
    scale = before / after
    support = max(scale, 1.0)
    index, weight = np.zeros((2, after, math.ceil(support) * 2 + 1), np.int32)
    for m in range(after):
        center = (m + 0.5) * scale
        first, end = max(0, int(center - support + 0.5)), min(before, int(center + support + 0.5))
        shares = [max(0.0, 1.0 - abs((n - center + 0.5) * (1.0 / support))) for n in range(first, end)]
        total = sum(shares)
        for k, share in enumerate(shares):
            index[m, k], weight[m, k] = first + k, int(0.5 + share / total * (1 << BITS))
    used = weight.any(axis=0)
    return index[:, used], weight[:, used]
