"""Transforms from a dataset's values to the model's inputs, and back. numpy and Pillow only.

Source: openpi src/openpi/transforms.py and packages/openpi-client/src/openpi_client/image_tools.py, commit
15a9616.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from harness.artifacts import DimensionStats
from harness.data.resample import fit
from harness.errors import HarnessError

Normalization = Literal["quantile", "zscore"]

# Prevents division by zero for a constant dimension. It is upstream's value, so that its checkpoints mean the
# same here.
EPSILON = 1e-6


def normalize(x: np.ndarray, stats: DimensionStats, mode: Normalization) -> np.ndarray:
    """`normalized`, returned as float32.

    Raises: HarnessError "stats-shape".
    """
    return normalized(x, stats, mode).astype(np.float32)


def normalized(x: np.ndarray, stats: DimensionStats, mode: Normalization) -> np.ndarray:
    """`x` normalized by quantiles or by z-scores.

    quantile: (x - q01) / (q99 - q01 + 1e-6) · 2 - 1; zscore: (x - mean) / (std + 1e-6).

    Shapes: x [..., D] with D values in each statistic. Float64.
    Raises: HarnessError "stats-shape".
    """
    low, scale = _affine(stats, mode, x.shape[-1])
    values: np.ndarray = (x.astype(np.float64) - low) / scale
    return values * 2.0 - 1.0 if mode == "quantile" else values


def unnormalize(x: np.ndarray, stats: DimensionStats, mode: Normalization) -> np.ndarray:
    """The inverse of `normalize` for the first D dimensions. The model's zero padding is dropped.

    Shapes: x [..., ≥ D] to [..., D].
    Raises: HarnessError "stats-shape".
    """
    dimensions = len(stats.q01 if mode == "quantile" else stats.mean)
    low, scale = _affine(stats, mode, min(dimensions, x.shape[-1]))
    values = x[..., :dimensions].astype(np.float64)
    values = (values + 1.0) / 2.0 if mode == "quantile" else values
    return (values * scale + low).astype(np.float32)


def _affine(stats: DimensionStats, mode: Normalization, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    width = len(stats.q01 if mode == "quantile" else stats.mean)
    if width != dimensions:
        raise HarnessError(
            "stats-shape",
            "the statistics have another number of dimensions than the data",
            got=width,
            need=dimensions,
            fix="harness stats with this dataset and recipe, into the same run",
        )
    if mode == "quantile":
        low, high = np.asarray(stats.q01, np.float64), np.asarray(stats.q99, np.float64)
        return low, high - low + EPSILON
    return np.asarray(stats.mean, np.float64), np.asarray(stats.std, np.float64) + EPSILON


def pad_last(x: np.ndarray, width: int) -> np.ndarray:
    """`x` padded with zeros at the end of its last axis, up to `width`.

    Padding comes after normalization, so it stays 0.

    Shapes: [..., D] to [..., width].
    """
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def resize_with_pad(image: np.ndarray, size: int) -> np.ndarray:
    """`image` scaled to fit a square of `size`, centred on black. Bilinear, as Pillow does it.

    Shapes: uint8 [H, W, 3] to [size, size, 3].
    """
    from PIL import Image

    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    small = fit(height, width, size)
    resized = np.asarray(
        Image.fromarray(image).resize((small.width, small.height), resample=Image.Resampling.BILINEAR)
    )
    if resized.shape[:2] == (size, size):
        return resized
    square = np.zeros((size, size, 3), np.uint8)
    square[small.top : small.top + small.height, small.left : small.left + small.width] = resized
    return square


def clean_prompt(text: str) -> str:
    """`text` as the tokenizer gets it: one line, no underscores, no surrounding white space."""
    return text.strip().replace("_", " ").replace("\n", " ")
