"""What the policy sees, made from what LIBERO gives, and its digest.

Source: openpi 15a9616, examples/libero/main.py and openpi_client/image_tools.py, whose bytes these are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from harness.simulate.frames import Array
from harness.simulate.protocol import Values


class Observation(NamedTuple):
    """One query: `image` and `wrist_image` uint8 [resize, resize, 3], `state` float64 [8]: position (m),
    axis-angle (rad), two fingers (m).
    """

    image: Array
    wrist_image: Array
    state: Array
    prompt: str

    def sha256(self) -> str:
        """The digest of its pictures, state and words, each with its length before it."""
        found = hashlib.sha256()
        parts = (self.image, self.wrist_image, self.state.astype("<f8"))
        for part in (*(np.ascontiguousarray(each).tobytes() for each in parts), self.prompt.encode()):
            found.update(len(part).to_bytes(8, "little"))
            found.update(part)
        return found.hexdigest()


def observation(raw: Mapping[str, Array], prompt: str, values: Values) -> Observation:
    """The observation of LIBERO's dictionary as the protocol says."""
    image, wrist_image = (
        picture(raw[camera], values.turn, values.resize, values.resize_method)
        for camera in (values.image, values.wrist_image)
    )
    return Observation(image, wrist_image, state(raw, values.state), prompt)


def picture(raw: Array, turn: int, size: int, method: str) -> Array:
    """uint8 [size, size, 3] of a camera's uint8 [height, width, 3], turned and resized; bars are black."""
    turned = np.ascontiguousarray(raw[::-1, ::-1] if turn == 180 else raw)
    height, width = turned.shape[:2]
    if (height, width) == (size, size):
        return turned
    ratio = max(width / size, height / size)
    to_height, to_width = int(height / ratio), int(width / ratio)
    resized = (_pil if method == "pil-bilinear" else _bilinear)(turned, to_height, to_width)
    found = np.zeros((size, size, 3), np.uint8)
    top, left = int((size - to_height) / 2), int((size - to_width) / 2)
    found[top : top + to_height, left : left + to_width] = resized
    return found


def _pil(raw: Array, height: int, width: int) -> Array:
    return np.asarray(Image.fromarray(raw).resize((width, height), Image.Resampling.BILINEAR))


def _bilinear(raw: Array, height: int, width: int) -> Array:
    """Four pixels around each point, whatever the scale: torch's interpolate without antialiasing."""
    found = raw.astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        scale = np.float32(found.shape[axis] / size)
        at = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
        low = np.minimum(at.astype(np.int64), found.shape[axis] - 1)
        high = np.minimum(low + 1, found.shape[axis] - 1)
        weight = np.expand_dims(at - low.astype(np.float32), (1, 2) if axis == 0 else (0, 2))
        one, two = (np.take(found, index, axis=axis) for index in (low, high))
        found = one * (1 - weight) + two * weight
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def state(raw: Mapping[str, Array], dtype: str) -> Array:
    """float64 [8]: end effector's position and axis-angle, gripper; computed in `dtype`."""
    parts = [np.array(raw[f"robot0_{name}"], dtype) for name in ("eef_pos", "eef_quat", "gripper_qpos")]
    return np.concatenate((parts[0], axis_angle(parts[1]), parts[2])).astype(np.float64)


def axis_angle(quaternion: Array) -> Array:
    """The rotation vector [3] (rad) of a quaternion x, y, z, w [4], in its own dtype.

    The angle is 0 to 2 pi: a quaternion and its negative give other vectors, as in robosuite's formula, which
    made the training data.
    """
    number = quaternion.dtype.type
    w = min(max(quaternion[3], number(-1)), number(1))
    size = np.sqrt(number(1) - w * w)
    if size == 0:
        return np.zeros(3, quaternion.dtype)
    angle = math.acos(w) if number is np.float64 else np.arccos(w)
    return (quaternion[:3] * number(2) * number(angle)) / size
