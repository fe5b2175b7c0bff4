"""The pictures of a batch: decoded, resized where that is this side's work, and kept while there is room.

Legend: B frames a batch, S the model's image size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.data.lerobot import LeRobotDataset
from harness.data.transforms import resize_with_pad

# A stored picture of at most so many times the model's pixels travels as it is: the device resizes it sooner
# than this side.
MOST_TIMES = 4


def travels(height: int, width: int, size: int) -> bool:
    """Whether a stored picture goes to the device as it is: resized there to the same pixels, for not many
    more bytes on the way.
    """
    return height == width and height * width <= MOST_TIMES * size**2


class Pictures:
    """Pictures by frame.

    The first ones stay, up to a budget: an order that visits every frame once an epoch has no recent
    favourites.
    """

    def __init__(self, data: LeRobotDataset, size: int, budget: int) -> None:
        self.data = data
        self._size, self._room = size, budget
        self._kept: dict[tuple[str, int, bool], np.ndarray] = {}

    def get(self, index: list[int], feature: str, *, resized: bool = True) -> np.ndarray:
        """uint8 [B, S, S, 3].

        Without `resized`, [B, H, W, 3] as stored, when all have one size that the device can resize as well.
        """
        found = [self._one(i, feature, resized) for i in index]
        if len({image.shape for image in found}) > 1:
            found = [resize_with_pad(image, self._size) for image in found]
        return np.stack(found)

    def _one(self, i: int, feature: str, resized: bool) -> np.ndarray:
        found = self._kept.get((feature, i, resized))
        if found is None:
            found = self.data.image(i, feature)
            height, width = found.shape[:2]
            if resized or not travels(height, width, self._size):
                found = resize_with_pad(found, self._size)
            # Threads may both find room for their last picture: the budget is passed by a picture each at
            # most.
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._kept[feature, i, resized] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_kept": {},
            "_room": self._room + sum(image.nbytes for image in self._kept.values()),
        }
