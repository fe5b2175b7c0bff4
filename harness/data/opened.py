"""The datasets of a recipe, opened: of one dataset, or of each of a mixture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from harness.artifacts import Dataset
from harness.data.held_out import Kept, left_out_of
from harness.data.lerobot import LeRobotDataset, open_data
from harness.recipe.schema import Recipe


@dataclass(frozen=True)
class Opened:
    """A dataset that is trained on, with its share of the samples.

    `recipe` and `described` are those of this dataset alone.

    Raises: what is held out raises HarnessError as `left_out_of`.
    """

    recipe: Recipe
    described: Dataset
    data: LeRobotDataset
    share: int

    @cached_property
    def left_out(self) -> list[int]:
        """The numbers of the episodes that the recipe holds out."""
        return left_out_of(self.recipe, self.data.episodes)

    @cached_property
    def kept(self) -> Kept | None:
        """The frames that are trained on; None if nothing is held out, and all are."""
        return Kept(self.data.episodes, self.left_out) if self.left_out else None

    @property
    def trained(self) -> int:
        """The number of frames that are trained on."""
        return self.data.frames if self.kept is None else len(self.kept)


def open_each(recipe: Recipe, dataset: Dataset) -> list[Opened]:
    """The recipe's datasets, opened where `dataset` says that they are. No row is read.

    Raises: HarnessError as `open_data`.
    """
    parts = zip(recipe.parts(), dataset.parts, dataset.shares or [1], strict=True)
    return [Opened(part, one, open_data(part.data, one.path), share) for part, one, share in parts]
