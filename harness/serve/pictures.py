"""A client's picture as the model's: any size, either order of axes, floats too."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.data.transforms import resize_with_pad
from harness.errors import HarnessError


def picture(name: str, value: Any, size: int) -> np.ndarray:
    """uint8 [S, S, 3], resized with padding as in training.

    `value` is [H, W, 3] or [3, H, W], of whole numbers 0 to 255 or of floats 0 to 1. Floats become
    255·x rounded down, and a first axis of 3 is that of colours, both as openpi's server has it.

    Raises: HarnessError "observation-invalid".
    Source: openpi src/openpi/policies/libero_policy.py, droid_policy.py, commit 15a9616.
    """
    if not isinstance(value, np.ndarray) or value.ndim != 3 or 3 not in (value.shape[0], value.shape[2]):
        got = f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise _invalid(name, got, "a picture of shape (height, width, 3) or (3, height, width)")
    if 0 in value.shape:
        raise _invalid(name, f"shape {value.shape}", "a picture that has pixels")
    if value.dtype.kind == "f":
        value = _from_floats(name, value)
    elif value.dtype != np.uint8:
        if value.dtype.kind not in "iu" or value.min() < 0 or value.max() > 255:
            raise _invalid(name, f"{value.dtype}", "uint8, or whole numbers 0 to 255")
        value = value.astype(np.uint8)
    if value.shape[0] == 3:
        value = value.transpose(1, 2, 0)
    return resize_with_pad(np.ascontiguousarray(value), size)


def _from_floats(name: str, value: np.ndarray) -> np.ndarray:
    scaled = 255 * value
    low, high = float(scaled.min()), float(scaled.max())
    # Also false for NaN.
    if not (low > -1 and high < 256):
        raise _invalid(
            name, f"floats from {low / 255:.4g} to {high / 255:.4g}", "floats from 0 to 1, or uint8"
        )
    return scaled.astype(np.uint8)


def _invalid(name: str, got: str, need: str) -> HarnessError:
    return HarnessError(
        "observation-invalid",
        f"the picture {name!r} cannot be used",
        got=got,
        need=need,
        fix="send uint8 of shape (224, 224, 3), as openpi_client.image_tools makes it",
    )
