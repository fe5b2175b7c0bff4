"""The pictures of a batch: decoded, resized unless the device does it, and cached within a budget.

Legend: B frames per batch, S the model's image size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.data.lerobot import LeRobotDataset
from harness.data.transforms import resize_with_pad

# A stored picture of at most this many times the model's pixels goes to the device unresized: the device
# resizes it faster than the host.
MOST_TIMES = 4


def travels(height: int, width: int, size: int) -> bool:
    """True if a stored picture goes to the device unresized.

    The device resizes it to the same pixels. Such a picture adds few bytes to the transfer.
    """
    return height == width and height * width <= MOST_TIMES * size**2


class Pictures:
    """Cache of pictures by frame.

    The first pictures stay, up to a budget. An order that visits every frame once per epoch has no use for
    the most recent ones.
    """

    def __init__(self, data: LeRobotDataset, size: int, budget: int) -> None:
        self.data = data
        self._size, self._room = size, budget
        self._kept: dict[tuple[str, int, bool], np.ndarray] = {}

    def get(self, index: list[int], feature: str, *, resized: bool = True) -> np.ndarray:
        """The pictures of the frames `index`: uint8 [B, S, S, 3].

        Without `resized` they are [B, H, W, 3] as stored, if all have one size that the device can resize.
        """
        found = self.listed(index, feature, resized=resized)
        if len({image.shape for image in found}) > 1:
            found = [resize_with_pad(image, self._size) for image in found]
        return np.stack(found)

    def listed(self, index: list[int], feature: str, *, resized: bool = True) -> list[np.ndarray]:
        """The pictures of the frames `index`, each of its own size: uint8 [H, W, 3]."""
        return [self._one(i, feature, resized) for i in index]

    def _one(self, i: int, feature: str, resized: bool) -> np.ndarray:
        found = self._kept.get((feature, i, resized))
        if found is None:
            found = self.data.image(i, feature)
            height, width = found.shape[:2]
            if resized or not travels(height, width, self._size):
                found = resize_with_pad(found, self._size)
            # Two threads may both find room for a last picture. The budget is exceeded by at most one picture
            # per thread.
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._kept[feature, i, resized] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_kept": {},
            "_room": self._room + sum(image.nbytes for image in self._kept.values()),
        }
