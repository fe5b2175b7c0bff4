"""Actions of held-out rows in the units of the robot that recorded them, and back.

Axes: N rows, A action horizon, D dimensions of a dataset's actions, E action_dim.
"""

from __future__ import annotations

import numpy as np

from harness.data.batch import Source
from harness.data.space import Space
from harness.data.stats import TINY_SHARE
from harness.data.transforms import normalize, unnormalize


def as_recorded(source: Source, sampled: np.ndarray, frames: list[int]) -> np.ndarray:
    """Sampled actions as the dataset records actions: the states of their first frames are added back.

    Shapes: [N, A, E], normalized, to [N, A, D].
    """
    config = source.recipe.data
    seen = unnormalize(sampled, source.stats["actions"], config.normalization)
    space = Space.of(config)
    return space.recorded(seen, _states(source, space, frames))


def largest_normalized(source: Source, frames: list[int]) -> np.ndarray:
    """The largest absolute value of each dimension [D] of the recorded actions, as the model sees them."""
    config, horizon = source.recipe.data, source.recipe.model.action_horizon
    data, space = source.pictures.data, Space.of(config)
    chunks = np.stack([data.action_chunk(i, horizon)[0] for i in frames])
    seen = space.actions(chunks, _states(source, space, frames))
    largest: np.ndarray = np.abs(normalize(seen, source.stats["actions"], config.normalization)).max((0, 1))
    return largest


def spread_of(source: Source) -> list[float | None]:
    """The normalization's spread of each dimension [D] in the robot's units; None for one that does not move.

    That of a relative dimension is the spread of its differences, whose unit is the robot's too.
    """
    stats, config = source.stats["actions"], source.recipe.data
    quantile = config.normalization == "quantile"
    widths = Space.of(config).widths_recorded(
        [high - low for low, high in zip(stats.q01, stats.q99, strict=True)] if quantile else stats.std
    )
    found: list[float | None] = []
    for low, high, wide, std in zip(stats.q01, stats.q99, widths, stats.std, strict=True):
        seen = high - low if quantile else std
        found.append(wide if seen > TINY_SHARE * max(abs(low), abs(high)) else None)
    return found


def _states(source: Source, space: Space, frames: list[int]) -> np.ndarray:
    return space.states(np.stack([source.pictures.data.state(i) for i in frames]))
