"""Which episodes are held out: a pure function of the recipe and the dataset's episode numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from harness.data.metadata import Episode
from harness.data.rows import Block
from harness.errors import HarnessError
from harness.recipe.episodes import expanded
from harness.recipe.holdout import Holdout
from harness.recipe.schema import Recipe

_MOST_SHOWN = 8
KEY = "train.holdout.episodes"


def left_out_of(recipe: Recipe, episodes: Iterable[Episode]) -> list[int]:
    """The numbers of the episodes that the recipe holds out, of those that it would train on without.

    Of a mixture `recipe` is that of one of its datasets alone: each holds out its own.

    Raises: HarnessError as `held_out`.
    """
    where = "" if recipe.data.key == "data" else f" of {recipe.data.key} ({recipe.data.dataset})"
    return held_out(recipe.train.holdout, [episode.index for episode in episodes], where)


def held_out(holdout: Holdout | None, episodes: Sequence[int], where: str = "") -> list[int]:
    """The numbers of the held-out episodes, sorted. `episodes` are those that would be trained on without.

    `where` names the dataset in an error.

    A number or a share takes the episodes whose hash with the seed is least. More of them therefore includes
    fewer of them, and an episode that is added to the dataset moves at most one other.

    Raises: HarnessError "holdout-unknown-episode", "holdout-leaves-nothing".
    """
    if holdout is None:
        return []
    asked = holdout.episodes
    if isinstance(asked, list):
        chosen = sorted(expanded(asked))
        strange = sorted(set(chosen) - set(episodes))
        if strange:
            raise _unknown(strange, episodes, where)
    else:
        count = asked if isinstance(asked, int) else max(1, round(asked * len(episodes)))
        chosen = sorted(sorted(episodes, key=lambda episode: _rank(holdout.seed, episode))[:count])
        if isinstance(asked, int) and asked > len(episodes):
            raise _nothing(asked, len(episodes), where)
    if len(chosen) >= len(episodes):
        raise _nothing(len(chosen), len(episodes), where)
    return chosen


def _rank(seed: int, episode: int) -> bytes:
    return hashlib.sha256(f"{seed} {episode}".encode()).digest()


def _unknown(strange: list[int], episodes: Sequence[int], where: str) -> HarnessError:
    shown = ", ".join(map(str, strange[:_MOST_SHOWN])) + (" …" if len(strange) > _MOST_SHOWN else "")
    there = sorted(episodes)
    return HarnessError(
        "holdout-unknown-episode",
        f"{KEY} names episodes that are not among those{where or ' of the run'}",
        got=shown,
        need=f"numbers between {there[0]} and {there[-1]} ({len(there)} episodes)" if there else "episodes",
        fix=f"--set {KEY}={max(1, len(there) // 20)} draws so many by train.holdout.seed; or correct the"
        " list",
    )


def _nothing(asked: int, there: int, where: str) -> HarnessError:
    return HarnessError(
        "holdout-leaves-nothing",
        f"{KEY} holds out every episode{where}, so there is nothing to train on",
        got=f"{asked} of {there} episodes",
        need=f"at most {there - 1}" if there > 1 else "a dataset of two episodes or more",
        fix=f"--set {KEY}={max(1, there // 10)}" if there > 1 else "--set train.holdout=null",
    )


class Kept:
    """The frames of the episodes that are trained on, numbered from 0 in the dataset's order."""

    def __init__(self, episodes: Iterable[Episode], left_out: Iterable[int]) -> None:
        without = set(left_out)
        kept = [episode for episode in episodes if episode.index not in without]
        self._firsts = np.array([episode.first for episode in kept], np.int64)
        self._before = np.cumsum([0, *(episode.length for episode in kept)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, n: int) -> int:
        """The number of frame `n` in the whole dataset."""
        at = int(np.searchsorted(self._before, n, side="right")) - 1
        return int(self._firsts[at] + n - self._before[at])


def blocks_without(
    blocks: Callable[[], Iterator[Block]], left_out: Iterable[int]
) -> Callable[[], Iterator[Block]]:
    """The same blocks without the rows of the episodes `left_out`."""
    without = frozenset(left_out)
    if not without:
        return blocks
    return lambda: (
        kept for block in blocks() if (kept := _without(block, without)) is not None and kept.episodes
    )


def _without(block: Block, left_out: frozenset[int]) -> Block | None:
    kept = [episode.index not in left_out for episode in block.episodes]
    if all(kept):
        return block
    rows = np.repeat(kept, [episode.length for episode in block.episodes])
    episodes = [episode for episode, keep in zip(block.episodes, kept, strict=True) if keep]
    return Block(
        episodes, block.state[rows], block.actions[rows], block.timestamp[rows], block.task_index[rows]
    )
