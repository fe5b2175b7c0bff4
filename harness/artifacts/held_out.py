"""The lines of held_out.jsonl, one a save: what the parameters of that save do on episodes not trained on."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from harness.received.files import METRICS_BYTES, open_received
from harness.strict import Strict
from harness.units import MIB

# Ten thousand episodes of sixteen dimensions have some 2 MiB.
LINE_BYTES = 8 * MIB
MOST_LINES = 20_000

Count = Annotated[int, Field(ge=0, lt=2**53, strict=True)]
Value = Annotated[float, Field(allow_inf_nan=False)] | None


class Switch(Strict):
    """One recorded change of a two-valued dimension, and the predicted one.

    `offset`: frames from the recorded to the predicted change, negative if that is early. It is null if the
    predicted chunk has no such change. `room` is the number of frames that the chunk has before and after.
    `part` is the position of its dataset among those of a mixture.
    """

    dimension: Count
    episode: Count
    offset: int | None = Field(ge=-(2**20), le=2**20)
    room: tuple[Count, Count]
    part: Count = 0


class OfDataset(Strict):
    """One dataset of a mixture in a line: its share of the samples, and how many of the episodes are its.

    `spread` is as in the line, of this dataset's dimensions.
    """

    dataset: str
    share: int = Field(gt=0, lt=2**53)
    episodes: int = Field(gt=0, lt=2**53)
    spread: list[Value]


class HeldOutLine(Strict):
    """What the parameters after `step` steps do on the held-out episodes.

    `parameters`: the average, if the run keeps one (what inference uses), else the trained parameters.
    `rows_sha256` is the hash of frames, noises and times; only lines of one hash may be compared. Lists have
    an entry an episode, in the order of `episodes`.

    `loss`: the training loss without augmentation, the mean over the episode's frames. `error`: [episode,
    dimension], the mean absolute difference between sampled and recorded actions in the robot's units,
    padding left out. `spread`: the normalization's spread of each dimension (q99 - q01, or the standard
    deviation) in the robot's units; null for a dimension that does not move. A value is null if it is not
    finite.

    `datasets` are those of a mixture, in their order; the episodes are listed dataset by dataset, and
    `spread` is then empty. Of one dataset `datasets` is empty.
    """

    step: Count
    parameters: Literal["average", "trained"]
    rows_sha256: str = Field(max_length=64)
    sampling_steps: Count
    episodes: list[Count]
    frames: list[Count]
    loss: list[Value]
    error: list[list[Value]]
    spread: list[Value]
    datasets: list[OfDataset] = []
    switches: list[Switch] = []
    seconds: float
    time: float

    @property
    def mean_loss(self) -> float | None:
        """The mean over the episodes; of a mixture, that of its datasets with their shares.

        None if one of them is not finite.
        """
        pairs = zip(self.loss, self.weights, strict=True)
        known = [value * weight for value, weight in pairs if value is not None]
        mean = sum(known) / len(self.loss)
        return mean if len(known) == len(self.loss) and math.isfinite(mean) else None

    @property
    def parts(self) -> list[OfDataset]:
        """The datasets of a mixture; of one dataset: itself, without a name."""
        alone = OfDataset.model_construct(
            dataset="", share=1, episodes=len(self.episodes), spread=self.spread
        )
        return self.datasets or [alone]

    @property
    def weights(self) -> list[float]:
        """What each episode counts in a mean over all: 1, or in a mixture as its dataset is drawn. Mean 1."""
        whole = sum(one.share for one in self.parts)
        return [
            one.share / whole * len(self.episodes) / one.episodes if self.datasets else 1.0
            for one in self.parts
            for _ in range(one.episodes)
        ]

    def rows_of(self, part: int) -> slice:
        """Where the episodes of the dataset at this position are in the line's lists."""
        first = sum(one.episodes for one in self.parts[:part])
        return slice(first, first + self.parts[part].episodes)

    @model_validator(mode="after")
    def _of_the_same_lengths(self) -> HeldOutLine:
        lengths = {len(each) for each in (self.episodes, self.frames, self.loss, self.error)}
        if len(lengths) != 1 or not self.episodes or (self.datasets and self.spread):
            raise ValueError("the lists are not of the same episodes")
        if sum(one.episodes for one in self.parts) != len(self.episodes):
            raise ValueError("the datasets do not have as many episodes as the line")
        for part, one in enumerate(self.parts):
            if any(len(row) != len(one.spread) for row in self.error[self.rows_of(part)]):
                raise ValueError("the lists are not of the same dimensions")
        return self


class Read(NamedTuple):
    """The readable lines by step, ascending. Of two lines of one step and one hash the later counts."""

    lines: list[HeldOutLine]
    unreadable: int

    @property
    def newest(self) -> list[HeldOutLine]:
        """The lines of the rows that were measured last: those that may be compared. By step, ascending."""
        last = max(self.lines, key=lambda line: line.time, default=None)
        return [line for line in self.lines if last is not None and line.rows_sha256 == last.rows_sha256]


def read_held_out(path: Path, root: Path) -> Read | None:
    """The lines of the run's file; None if there is none.

    Raises: UnsafeFile; OSError as `open` does.
    """
    found: dict[tuple[int, str], HeldOutLine] = {}
    unreadable = 0
    try:
        for text in _lines(path, root):
            line = line_of(text)
            if line is None:
                unreadable += 1
            else:
                found[line.step, line.rows_sha256] = line
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Read([found[key] for key in sorted(found)], unreadable)


def line_of(text: bytes) -> HeldOutLine | None:
    """The line, or None if it is torn, too long or of another form."""
    if len(text) > LINE_BYTES:
        return None
    try:
        return HeldOutLine.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        return None


def _lines(path: Path, root: Path) -> Iterator[bytes]:
    with open_received(path, root) as file:
        read, count = 0, 0
        while read < METRICS_BYTES and count < MOST_LINES and (text := file.readline(LINE_BYTES + 1)):
            read, count = read + len(text), count + 1
            if text.strip():
                yield text
