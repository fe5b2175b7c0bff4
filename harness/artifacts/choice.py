"""choice.json: which save of a run, by its held-out episodes, and how sure that is."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from harness.artifacts.base import Artifact
from harness.strict import Strict

By = Literal["loss", "action"]


class Interval(Strict):
    """A mean over episodes with its 95 % interval. The ends are None for one episode, all if not finite."""

    mean: float | None
    low: float | None = None
    high: float | None = None

    def words(self, form: str) -> str:
        """The mean with the ends of its interval, each in the format `form`."""
        if self.mean is None:
            return "not finite"
        if self.low is None or self.high is None:
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


class Apart(NamedTuple):
    """How many switches were predicted too early or too late, and by how many frames on average."""

    many: int
    frames: float


class Switches(Strict):
    """The recorded switches of two-valued dimensions, by what was predicted.

    `offsets`: frames from the recorded to the predicted switch → how many; negative is early.
    """

    count: int
    missed: int
    offsets: dict[int, int]

    @property
    def early(self) -> Apart:
        return _apart({-offset: n for offset, n in self.offsets.items() if offset < 0})

    @property
    def late(self) -> Apart:
        return _apart({offset: n for offset, n in self.offsets.items() if offset > 0})


def _apart(frames: dict[int, int]) -> Apart:
    count = sum(frames.values())
    return Apart(count, sum(k * n for k, n in frames.items()) / count if count else 0.0)


class OfDataset(Strict):
    """One dataset of a mixture at a save; its quantities as in `Mark`."""

    dataset: str
    loss: Interval
    action: Interval
    errors: list[Interval]


class Mark(Strict):
    """One measured save.

    `action` is the error of sampled actions as a share of each dimension's spread, the mean over dimensions.
    `errors` has the error of each dimension in the robot's units. `worse` is the paired difference to the
    best save on disk in the quantity that is chosen by. `told_apart`: its interval does not hold 0; None
    without an interval.

    Of a mixture, `loss` and `action` count each dataset with its share of the samples, `datasets` has each
    one alone, and `errors` is empty.
    """

    step: int
    on_disk: bool
    loss: Interval
    action: Interval
    errors: list[Interval]
    switches: Switches | None
    datasets: list[OfDataset] = []
    worse: Interval | None = None
    told_apart: bool | None = None


class Choice(Artifact):
    """The choice among the measured saves.

    `chosen` is the best save on disk; `best` the best of all, which may have been deleted. `alike` are the
    saves that cannot be told apart from `chosen`. `answer` says it in one sentence. `notes` say what it
    leaves out.
    """

    FILE: ClassVar[str] = "choice.json"
    run: str
    by: By
    parameters: Literal["average", "trained"]
    episodes: int
    frames: int
    interval: str
    marks: list[Mark]
    best: int | None
    chosen: int | None
    alike: list[int]
    answer: str
    notes: list[str] = []
    commands: list[str] = []

    def word_of(self, mark: Mark) -> str:
        """What the paired difference to the chosen save says of a save."""
        if mark.step == self.chosen:
            return "chosen"
        if mark.worse is None or mark.worse.mean is None:
            return "not compared"
        if mark.told_apart is not True:
            return "cannot be told apart"
        return "worse" if mark.worse.mean > 0 else "better"
