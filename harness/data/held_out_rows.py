"""The rows of a held-out pass: frames, noises and times, the same at every save and after a resume.

Each row's numbers depend on the seed, the episode and the frame alone. They come from numpy's RandomState,
whose stream is frozen (NEP 19).

Axes: N rows, A action horizon, E action_dim.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.data.lerobot import LeRobotDataset
from harness.data.metadata import Episode
from harness.recipe.holdout import Holdout

# Euler steps from noise to actions, as in openpi and in `harness predict`.
SAMPLING_STEPS = 10
# A dimension has two values if so many of its values lie within so small a part of the range from either end,
# and each end has so many of them.
_NEARLY_ALL, _NEAR, _EACH = 0.95, 0.1, 0.01


class TwoValued(NamedTuple):
    """A dimension that switches between two values. `middle` divides them."""

    dimension: int
    middle: float


class RecordedSwitch(NamedTuple):
    """A recorded change of a two-valued dimension, at `offset` frames after the first one of row `row`.

    `middle` divides the two values; `after` says whether the change is to the upper one.
    """

    row: int
    dimension: int
    episode: int
    offset: int
    after: bool
    middle: float


class Rows(NamedTuple):
    """The rows of a pass. The first `measured` are spread evenly over the episodes; the others show switches.

    `frames`, numbers in the whole dataset, `episode` and `part`, the position of the row's dataset in a
    mixture, have an entry a row. Both kinds of rows are dataset by dataset.

    Shapes: noise, start float32 [N, A, E]; time float32 [N].
    """

    frames: list[int]
    episode: list[int]
    part: list[int]
    measured: int
    noise: np.ndarray
    start: np.ndarray
    time: np.ndarray
    switches: list[RecordedSwitch]
    sha256: str


def count_of(holdout: Holdout, episodes: int) -> int:
    """The largest number of rows of a pass over so many episodes: the frames, and half as many switches."""
    frames = max(holdout.frames, episodes)
    return frames + frames // 2


def shared(holdout: Holdout, datasets: int) -> list[Holdout]:
    """The holdout of each dataset of a mixture: its frames are shared evenly, and each has one at least."""
    each, more = divmod(holdout.frames, datasets)
    return [holdout.model_copy(update={"frames": max(1, each + (part < more))}) for part in range(datasets)]


def rows_of_all(
    holdout: Holdout, datasets: Sequence[tuple[LeRobotDataset, list[int]]], horizon: int, action_dim: int
) -> Rows:
    """The rows over the episodes that each dataset holds out; of one dataset: `rows_of`."""
    found = [
        rows_of(own, data, left_out, horizon, action_dim)
        for own, (data, left_out) in zip(shared(holdout, len(datasets)), datasets, strict=True)
    ]
    return found[0] if len(found) == 1 else _joined(found)


def _joined(found: list[Rows]) -> Rows:
    """The measured rows of all datasets, then those that show switches."""
    kept = [
        (part, row)
        for rows in ("measured", "switches")
        for part, one in enumerate(found)
        for row in (range(one.measured) if rows == "measured" else range(one.measured, len(one.frames)))
    ]
    at = {each: n for n, each in enumerate(kept)}
    switches = [
        each._replace(row=at[part, each.row]) for part, one in enumerate(found) for each in one.switches
    ]
    return Rows(
        [found[part].frames[row] for part, row in kept],
        [found[part].episode[row] for part, row in kept],
        [part for part, _ in kept],
        sum(one.measured for one in found),
        np.stack([found[part].noise[row] for part, row in kept]),
        np.stack([found[part].start[row] for part, row in kept]),
        np.array([found[part].time[row] for part, row in kept], np.float32),
        switches,
        hashlib.sha256("".join(one.sha256 for one in found).encode()).hexdigest(),
    )


def rows_of(
    holdout: Holdout, data: LeRobotDataset, left_out: list[int], horizon: int, action_dim: int
) -> Rows:
    """The rows over the episodes `left_out` of `data`."""
    wanted = set(left_out)
    episodes = [episode for episode in data.episodes if episode.index in wanted]
    by_number = {episode.index: episode for episode in episodes}
    spread = [frame for episode, n in _shares(holdout, episodes) for frame in _spread(episode, n)]
    two_valued = _two_valued(data, episodes)
    middles = dict(two_valued)
    found = _switches(data, episodes, two_valued, horizon)
    most = max(holdout.frames, len(episodes)) // 2
    found = sorted(sorted(found, key=lambda each: _rank(holdout.seed, each))[:most])
    windows = [_window(by_number[episode], t, horizon) for episode, t, _, _ in found]
    index = [
        *spread,
        *(by_number[episode].first + at for (episode, *_), at in zip(found, windows, strict=True)),
    ]
    switches = [
        RecordedSwitch(len(spread) + row, dimension, episode, t - at, after, middles[dimension])
        for row, ((episode, t, dimension, after), at) in enumerate(zip(found, windows, strict=True))
    ]
    owners = [data.episode_of(i) for i in index]
    drawn = [
        _drawn(holdout.seed, owner.index, i - owner.first, horizon, action_dim)
        for i, owner in zip(index, owners, strict=True)
    ]
    said = [1, holdout.seed, SAMPLING_STEPS, horizon, action_dim, len(spread), index]
    return Rows(
        index,
        [owner.index for owner in owners],
        [0] * len(index),
        len(spread),
        np.stack([noise for noise, _, _ in drawn]),
        np.stack([start for _, start, _ in drawn]),
        np.array([time for _, _, time in drawn], np.float32),
        switches,
        hashlib.sha256(json.dumps(said).encode()).hexdigest(),
    )


def _shares(holdout: Holdout, episodes: list[Episode]) -> list[tuple[Episode, int]]:
    """The number of frames of each episode: as equal as may be, at least one, at most its length."""
    each, more = divmod(max(holdout.frames, len(episodes)), len(episodes))
    return [(episode, min(episode.length, each + (i < more))) for i, episode in enumerate(episodes)]


def _spread(episode: Episode, count: int) -> list[int]:
    """Frames in the middles of `count` equal parts of the episode."""
    return [episode.first + (2 * i + 1) * episode.length // (2 * count) for i in range(count)]


def _drawn(
    seed: int, episode: int, frame: int, horizon: int, action_dim: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """(noise of the loss, noise that sampling starts from, time) of one row.

    t ~ 0.999·Beta(1.5, 1) + 0.001, as in training: u^(2/3) of a uniform u has that Beta distribution.
    """
    stream = np.random.RandomState([seed, episode % 2**32, frame % 2**32])
    noise, start = stream.standard_normal((2, horizon, action_dim)).astype(np.float32)
    return noise, start, float(stream.uniform() ** (2 / 3) * 0.999 + 0.001)


def _two_valued(data: LeRobotDataset, episodes: list[Episode]) -> list[TwoValued]:
    """The dimensions of the recorded actions that take two values, or nearly so."""
    values = np.concatenate([_actions(data, episode) for episode in episodes])
    low, high = values.min(axis=0), values.max(axis=0)
    near = _NEAR * (high - low)
    at_low, at_high = (values <= low + near).mean(axis=0), (values >= high - near).mean(axis=0)
    is_two = (high > low) & (at_low + at_high >= _NEARLY_ALL) & (np.minimum(at_low, at_high) >= _EACH)
    return [TwoValued(int(d), float((low[d] + high[d]) / 2)) for d in np.flatnonzero(is_two)]


# (episode, frame of the change, dimension, whether the value is the upper one from then on)
_Change = tuple[int, int, int, bool]


def _switches(
    data: LeRobotDataset, episodes: list[Episode], two_valued: list[TwoValued], horizon: int
) -> list[_Change]:
    """Every change of a two-valued dimension. None in chunks of one action, which show no change."""
    found = []
    for episode in episodes if horizon > 1 else ():
        actions = _actions(data, episode)
        for dimension, middle in two_valued:
            upper = actions[:, dimension] > middle
            found += [
                (episode.index, int(t), dimension, bool(upper[t]))
                for t in np.flatnonzero(upper[1:] != upper[:-1]) + 1
            ]
    return found


def _window(episode: Episode, change: int, horizon: int) -> int:
    """The frame from which a chunk has the change in its middle, or as near to it as the episode allows.

    It is at least one frame before the change.
    """
    return max(0, min(change - horizon // 2, episode.length - horizon))


def _rank(seed: int, change: _Change) -> bytes:
    return hashlib.sha256(f"{seed} {change}".encode()).digest()


def _actions(data: LeRobotDataset, episode: Episode) -> np.ndarray:
    found: np.ndarray = data.columns.actions[episode.first : episode.first + episode.length]
    return found
