"""Finds actions that are absolute targets: the position at which the robot is to be next.

π0.5 was pre-trained on differences to the state of a chunk's first frame. A recipe that learns targets as
they are recorded trains without an error, and worse.

The rule, for each dimension that the state has too, over pairs of neighbouring frames:

- near: half of the actions lie within 10 % of their own range of the next frame's state;
- together: action and next state correlate by at least 0.9;
- far from zero: the actions are at least 3 times as large as the state's steps.

The range goes from the 5 % to the 95 % quantile, so that a few wrong frames decide nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from harness.data.rows import Block
from harness.recipe.dimensions import numbers_of, ranges_of
from harness.recipe.schema import Recipe

NEAR, TOGETHER, FAR = 0.1, 0.9, 3.0
# Beyond either, actions are no targets.
UNLIKE_NEAR, UNLIKE_TOGETHER = 0.4, 0.5
# Pairs that are looked at, evenly spread; below the least nothing is said.
_SAMPLED, _LEAST = 50_000, 20
_GRIPPER = re.compile(r"gripper|finger|claw|jaw|hand_?close|grasp", re.IGNORECASE)
# Rates and forces follow their state too, and no position is taken from them.
_NO_POSITION = re.compile(r"vel|speed|effort|torque|force|current", re.IGNORECASE)
# The dimensions of one arm with its gripper at the end: five joints (SO-100), six, or seven.
_ONE_ARM, _TWO_ARMS = (6, 7, 8), (12, 14, 16)


class Follow(NamedTuple):
    """How one action dimension lies to the state. `near` is a share of the actions' range."""

    near: float
    together: float
    far: float

    @property
    def is_target(self) -> bool:
        """True if the actions are absolute targets."""
        return self.near <= NEAR and self.together >= TOGETHER and self.far >= FAR

    @property
    def is_unlike(self) -> bool:
        """True if the actions cannot be targets, however late the robot follows."""
        return self.near > UNLIKE_NEAR or self.together < UNLIKE_TOGETHER


class Targets:
    """Collects pairs of neighbouring frames, and tells what they say of the actions."""

    def __init__(self, frames: int) -> None:
        self._every = max(1, -(-frames // _SAMPLED))
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def look(self, block: Block) -> None:
        """Takes the pairs of a block, none across the end of an episode."""
        width = min(block.state.shape[1], block.actions.shape[1])
        ends = np.cumsum([episode.length for episode in block.episodes]) - 1
        first = np.setdiff1d(np.arange(0, len(block.actions), self._every), ends)
        if width and len(first):
            states = block.state[:, :width]
            self._pairs.append((block.actions[first, :width], states[first], states[first + 1]))

    def follows(self) -> dict[int, Follow]:
        """How each dimension lies to the state; none for one that does not move."""
        if not self._pairs:
            return {}
        actions, now, then = (
            np.concatenate(parts).astype(np.float64) for parts in zip(*self._pairs, strict=True)
        )
        if len(actions) < _LEAST:
            return {}
        found = {}
        for d in range(actions.shape[1]):
            low, high = np.quantile(actions[:, d], (0.05, 0.95))
            if high > low and np.ptp(then[:, d]) > 0:
                found[d] = _follow(actions[:, d], now[:, d], then[:, d], low, high)
        return found


def _follow(action: np.ndarray, now: np.ndarray, then: np.ndarray, low: float, high: float) -> Follow:
    """How the actions of one dimension lie to the states [N] of their frame and of the next."""
    step = float(np.quantile(np.abs(then - now), 0.95))
    size = float(np.quantile(np.abs(action), 0.95))
    kept, beside = np.clip(action, low, high), np.clip(then, *np.quantile(then, (0.05, 0.95)))
    spread = kept.std() * beside.std()
    together = float(((kept - kept.mean()) * (beside - beside.mean())).mean() / spread) if spread > 0 else 0.0
    near = float(np.median(np.abs(action - then)) / (high - low))
    return Follow(near, together, size / step if step > 0 else np.inf)


def findings(recipe: Recipe, targets: Targets, names: list[str] | None, width: int) -> list[str]:
    """What the recipe does with absolute targets, where it is not what π0.5 was pre-trained with.

    `names` are the dimensions' names, if the dataset has them, and `width` is the number of dimensions.
    """
    follows = targets.follows()
    gripper, by = grippers(names, width)
    still = {d for d, name in enumerate(names or []) if _NO_POSITION.search(name)}
    wanted = [d for d, one in follows.items() if one.is_target and d not in gripper | still]
    chosen = numbers_of(recipe.data.relative)
    key = f"{recipe.data.key}.relative"
    proposed = f"--set {key}={','.join(ranges_of(wanted)) or 'null'}"
    said = []
    missing = [d for d in wanted if d not in chosen]
    if missing:
        worst = max(follows[d].near for d in missing)
        does = "learns them as they are recorded" if not chosen else "leaves them as they are recorded"
        beside = f"; gripper {by}: {', '.join(ranges_of(sorted(gripper)))}" if gripper else ""
        said.append(
            f"{recipe.data.actions}: {_said(missing)} absolute targets (within"
            f" {100 * worst:.2g} % of their range of the next frame's state, and far from zero{beside}). The"
            f" recipe {does}; π0.5 was pre-trained on differences to the chunk's first state: {proposed}"
        )
    odd = [d for d in chosen if d in follows and follows[d].is_unlike]
    if odd:
        said.append(
            f"{key} takes the state from {recipe.data.actions}, and {_said(odd)} no targets: the next"
            f" frame's state is elsewhere, as with actions that are differences already: {proposed}"
        )
    return said


def _said(dimensions: list[int]) -> str:
    named = ", ".join(ranges_of(dimensions))
    return f"dimension {named} holds" if len(dimensions) == 1 else f"dimensions {named} hold"


def grippers(names: list[str] | None, width: int) -> tuple[set[int], str]:
    """The dimensions that are grippers, and whether that is known by name or by position.

    Without names an arm's last dimension counts as its gripper.
    """
    if names:
        return {d for d, name in enumerate(names) if _GRIPPER.search(name)}, "by name"
    if width in _ONE_ARM:
        return {width - 1}, "by its position, for want of names"
    if width in _TWO_ARMS:
        return {width // 2 - 1, width - 1}, "by its position, for want of names"
    return set(), ""
