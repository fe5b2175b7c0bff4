"""The seam between server and engine.

Axes: B rows, S image size, T prompt tokens of a bucket, H action horizon, D action_dim of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Inputs(NamedTuple):
    """What the observations of B clients became.

    Shapes: images uint8 [B, S, S, 3] of each camera of the model, resized with padding (an absent camera is
    an absent key); tokens int32 [B, T]; token_mask bool [B, T].
    """

    images: dict[str, Array]
    tokens: Array
    token_mask: Array


class Engine(Protocol):
    """A policy that is ready to act.

    `buckets` are the prompt lengths that are compiled, ascending; the last is the recipe's prompt_tokens.
    `batches` are the batch sizes that are compiled, ascending. `cameras` are those of the model that the
    recipe's data has.
    """

    horizon: int
    action_dim: int
    buckets: tuple[int, ...]
    batches: tuple[int, ...]
    cameras: tuple[str, ...]

    def warm(self, say: Callable[[str], None]) -> None:
        """Compiles and runs every shape once; says progress."""

    def sample(self, inputs: Inputs, noise: Array) -> Array:
        """Normalized actions float32 [B, H, D] from noise of that shape; B is one of `batches`."""
