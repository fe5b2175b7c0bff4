"""Which frames each step sees: a pure function of seed and step.

Of one dataset every epoch is its own permutation of the frames. Of a mixture, each sample belongs to one
dataset, and each dataset goes through its own permutations, epoch after epoch, at its own pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Frame(NamedTuple):
    """Frame `number` of dataset `part` of a mixture; of one dataset, `part` is 0."""

    part: int
    number: int


class Order:
    """The frames of each step at the `rows` of the global batch. Picklable.

    A batch may begin in one epoch and end in the next. `frames` are the numbers of frames of the datasets,
    `shares` their shares of the samples, as whole numbers.
    """

    def __init__(
        self, frames: Sequence[int], shares: Sequence[int], seed: int, batch_size: int, rows: range
    ) -> None:
        self._frames, self._shares, self._seed = list(frames), list(shares), seed
        self._batch_size, self._rows = batch_size, rows
        self._endless: list[Any] = []

    def __call__(self, step: int) -> list[Frame]:
        return self._at(step, self._rows)

    def of_all_rows(self, step: int) -> list[Frame]:
        """The frames of the whole global batch, whatever the rows of this order."""
        return self._at(step, range(self._batch_size))

    def _at(self, step: int, rows: range) -> list[Frame]:
        if not self._endless:
            import grain

            self._endless = [
                grain.MapDataset.range(frames).seed(_seed_of(self._seed, part)).shuffle().repeat()
                for part, frames in enumerate(self._frames)
            ]
        drawn = [draw(step * self._batch_size + row, self._shares) for row in rows]
        return [Frame(part, int(self._endless[part][number])) for part, number in drawn]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_endless": []}


def draw(sample: int, shares: Sequence[int]) -> Frame:
    """The dataset of a sample, and how many samples before it were of the same dataset.

    Of the first n samples, n · share / sum of the first dataset's are of it, rounded down; the rest is
    divided among the others in the same way. So after every sum-of-shares samples the proportions are exact,
    and never more than as many samples off as there are datasets.
    """
    left, whole = sample, sum(shares)
    for part, share in enumerate(shares):
        before = left * share // whole
        if (left + 1) * share // whole > before:
            return Frame(part, before)
        left, whole = left - before, whole - share
    raise ValueError(f"no share in {shares}")


def _seed_of(seed: int, part: int) -> int:
    """The seed of a dataset's permutations. That of the first is the recipe's, as if it were alone."""
    return seed if part == 0 else int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
