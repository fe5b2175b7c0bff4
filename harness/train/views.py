"""Saves the camera views of a batch as one picture, so that a person sees what the model is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.run.directory import CAMERA_VIEWS, write_atomic

_SAMPLES = 5


def save_camera_views(directory: Path, batch: dict[str, Any]) -> Path:
    """The path of the PNG: a column a sample (five at most), a row a camera.

    The images are those that enter the model before augmentation.
    """
    rows = [np.concatenate(list(images[:_SAMPLES]), axis=1) for images in batch["images"].values()]
    path, encoded = directory / CAMERA_VIEWS, io.BytesIO()
    Image.fromarray(np.concatenate(rows, axis=0)).save(encoded, "PNG")
    write_atomic(path, encoded.getvalue())
    return path
