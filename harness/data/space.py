"""States and actions as the model sees them, and back: from a dataset's units to the model's. numpy only.

Axes: H action horizon, A dimensions of an action, S dimensions of a state.

Source: openpi src/openpi/transforms.py `DeltaActions`, `AbsoluteActions`; policies/aloha_policy.py, commit
15a9616.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from harness.data.rows import Block
from harness.recipe.dimensions import numbers_of
from harness.recipe.schema import Data

# Two arms of six joints and a gripper each.
ALOHA_DIMENSIONS = 14
_ALOHA_FLIP = np.array([1, -1, -1, 1, 1, 1, 1, 1, -1, -1, 1, 1, 1, 1])
_ALOHA_GRIPPERS = [6, 13]
# Metres between the fingers: closed and open. Radians of the gripper's joint: of the follower arm, and of
# the leader arm, whose position is the action.
_FINGERS_M = (0.01844, 0.05800)
_FOLLOWER_RAD = (0.5476, 1.6296)
_LEADER_RAD = (-0.6213, 1.4910)
_ARM_M, _HORN_M = 0.036, 0.022
# Rows of a block at a time, so that the float64 copies stay small.
_ROWS = 1 << 16


class Space(NamedTuple):
    """How a recipe has states and actions turned into the model's, before they are normalized.

    `relative` is a mask of the action dimensions from which the state is taken; later ones are not relative.
    """

    adapt: str | None
    relative: tuple[bool, ...]

    @classmethod
    def of(cls, data: Data) -> Space:
        """The space of a recipe's data."""
        numbers = numbers_of(data.relative)
        return cls(data.adapt, tuple(d in numbers for d in range(numbers[-1] + 1)) if numbers else ())

    @property
    def is_plain(self) -> bool:
        """True if the model sees states and actions as they are recorded."""
        return self.adapt is None and not any(self.relative)

    def states(self, states: np.ndarray) -> np.ndarray:
        """States [..., S] in the model's units. Of float64 if they are adapted, otherwise unchanged."""
        if self.adapt is None:
            return states
        found: np.ndarray = _ALOHA_FLIP * states.astype(np.float64)
        found[..., _ALOHA_GRIPPERS] = _follower_gripper(found[..., _ALOHA_GRIPPERS])
        return found

    def actions(self, chunks: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Chunks [..., H, A] in the model's units. `states` [..., S], of their first frames, already are."""
        return self._shifted(self._adapted(chunks), states, -1)

    def recorded(self, chunks: np.ndarray, states: np.ndarray) -> np.ndarray:
        """The inverse of `actions`: chunks [..., H, A] float32 in the dataset's units."""
        found = self._shifted(chunks, states, +1)
        if self.adapt is not None:
            found = _ALOHA_FLIP * found.astype(np.float64)
            low, high = _LEADER_RAD
            grippers = found[..., _ALOHA_GRIPPERS] + _FOLLOWER_RAD[0]
            found[..., _ALOHA_GRIPPERS] = (grippers - low) / (high - low)
        return found.astype(np.float32)

    def widths_recorded(self, widths: list[float]) -> list[float]:
        """Distances between two actions, of each dimension [A], from the model's units to the dataset's."""
        found = list(widths)
        if self.adapt is not None:
            low, high = _LEADER_RAD
            for dimension in _ALOHA_GRIPPERS:
                found[dimension] /= high - low
        return found

    def _adapted(self, actions: np.ndarray) -> np.ndarray:
        if self.adapt is None:
            return actions
        found: np.ndarray = _ALOHA_FLIP * actions.astype(np.float64)
        low, high = _LEADER_RAD
        found[..., _ALOHA_GRIPPERS] = found[..., _ALOHA_GRIPPERS] * (high - low) + low - _FOLLOWER_RAD[0]
        return found

    def _shifted(self, chunks: np.ndarray, states: np.ndarray, sign: int) -> np.ndarray:
        if not any(self.relative):
            return chunks
        width = len(self.relative)
        found = chunks.copy()
        taken = np.where(np.array(self.relative), states[..., :width], 0)[..., None, :]
        found[..., :width] = chunks[..., :width] + taken if sign > 0 else chunks[..., :width] - taken
        return found

    def alone(self, key: Literal["state", "actions"], values: np.ndarray) -> np.ndarray:
        """States or actions [N, D] float32 in the model's units, the state not taken from the actions."""
        found = self.states(values) if key == "state" else self._adapted(values)
        return found.astype(np.float32, copy=False)

    def relative_rows(self, block: Block, horizon: int) -> Iterator[np.ndarray]:
        """The relative dimensions [N, R] of `rows`, in order. None if no dimension is relative."""
        if any(self.relative):
            kept = np.flatnonzero(self.relative)
            for _, actions in self.rows(block, horizon):
                yield actions[:, kept]

    def rows(self, block: Block, horizon: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All actions of all chunks of a block: for some rows and one position in the chunk at a time.

        Past an episode's end its last action repeats. No chunk is held as a whole.

        Shapes: the rows' states [N, S] and their actions [N, A], both float32, in the model's units.
        """
        lengths = np.array([episode.length for episode in block.episodes])
        last = np.repeat(np.cumsum(lengths) - 1, lengths)
        for start in range(0, len(last), _ROWS):
            here = np.arange(start, min(start + _ROWS, len(last)))
            states = self.states(block.state[here])
            for ahead in range(horizon):
                actions = block.actions[np.minimum(here + ahead, last[here])]
                seen = self.actions(actions[:, None, :], states)[:, 0]
                yield states.astype(np.float32, copy=False), seen.astype(np.float32, copy=False)

    def tiled(self, block: Block, horizon: int) -> Block:
        """The block with states and actions as the model sees them, in chunks that follow each other.

        Each chunk has `horizon` actions, or fewer at an episode's end.
        """
        lengths = np.array([episode.length for episode in block.episodes])
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.arange(len(first))
        states = self.states(block.state)
        starts = first + (rows - first) // horizon * horizon
        actions = self.actions(block.actions[:, None, :], states[starts])[:, 0]
        return replace(
            block,
            state=states.astype(np.float32, copy=False),
            actions=actions.astype(np.float32, copy=False),
        )


def _follower_gripper(value: np.ndarray) -> np.ndarray:
    """The follower's gripper, 0 to 1 by the distance of its fingers, as 0 to 1 by the angle of its joint.

    Source: `_gripper_to_angular`; the lengths are those of the gripper's linkage.
    """
    low, high = _FINGERS_M
    distance = value * (high - low) + low
    sine = (_HORN_M**2 + distance**2 - _ARM_M**2) / (2 * _HORN_M * distance)
    least, most = _FOLLOWER_RAD
    found: np.ndarray = (np.arcsin(np.clip(sine, -1.0, 1.0)) - least) / (most - least)
    return found


def seen_blocks(blocks: Iterable[Block], space: Space, horizon: int) -> Iterator[Block]:
    """Blocks with states and actions as the model sees them, once for each position in a chunk.

    The blocks themselves if the model sees them as they are recorded.
    """
    for block in blocks:
        if space.is_plain:
            yield block
            continue
        for state, actions in space.rows(block, horizon):
            yield replace(block, state=state, actions=actions)
