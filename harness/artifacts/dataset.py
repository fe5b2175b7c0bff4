"""dataset.json, norm_stats.json and comparison.json: the data and its statistics."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from harness.artifacts.base import Artifact
from harness.recipe.norm_stats import FILE as NORM_STATS_FILE
from harness.strict import Strict


class Feature(Strict):
    dtype: str
    shape: list[int]


class LeftOut(Strict):
    """The episodes that a recipe leaves out: numbers, and ranges such as "3-7"."""

    episodes: list[int | str]
    frames: int


class Dataset(Artifact):
    """A dataset as it was read. `episodes`, `frames` and `tasks` are those that are trained on.

    `sha256` is of all of its files; `left_out` is what the recipe's data.episodes leave out.

    Of a mixture, `members` are its datasets and `shares` their parts of the samples. Counts and sizes are
    then those of all of them, and `path` is empty.

    `longest_prompt_tokens` is None if the tokenizer is not on this machine, and `unknown` says so. Prompts
    then take all of the recipe's tokens. `held_out` are the episodes that train.holdout keeps out of
    training; of a mixture its `members` have them. `trained_frames` is the number of frames that are left;
    None where no episode is held out.
    """

    FILE: ClassVar[str] = "dataset.json"
    source: str
    revision: str | None = None
    path: str
    format_version: str
    fps: float
    episodes: int
    frames: int
    tasks: list[str]
    features: dict[str, Feature]
    cameras: dict[str, str | None]
    sha256: str
    longest_prompt_tokens: int | None
    prompt_tokens: int
    total_bytes: int
    held_out: list[int] = []
    trained_frames: int | None = None
    findings: list[str] = []
    unknown: dict[str, str] = {}
    left_out: LeftOut | None = None
    members: list[Dataset] = []
    shares: list[int] = []

    @property
    def trained(self) -> int:
        """The number of frames that are trained on."""
        return self.frames if self.trained_frames is None else self.trained_frames

    @property
    def held_out_count(self) -> int:
        """The number of held-out episodes, of all datasets."""
        return sum(len(one.held_out) for one in self.parts)

    @property
    def parts(self) -> list[Dataset]:
        """The datasets of a mixture; of one dataset: itself."""
        return self.members or [self]


class DimensionStats(Strict):
    """One vector per statistic, as in openpi's norm_stats.json (plus the exact min and max).

    A statistic that another tool's file lacks is an empty vector.
    """

    mean: list[float]
    std: list[float]
    q01: list[float]
    q99: list[float]
    min: list[float] | None = None
    max: list[float] | None = None

    @model_validator(mode="after")
    def _of_the_same_dimensions(self) -> DimensionStats:
        lengths = {
            len(each) for each in (self.mean, self.std, self.q01, self.q99, self.min, self.max) if each
        }
        if len(lengths) > 1:
            raise ValueError("mean, std, q01 and q99 are not of the same dimensions")
        return self


class DegenerateDimension(Strict):
    key: Literal["state", "actions"]
    dimension: int
    problem: str
    largest_normalized: float | None
    fix: str


class Given(Strict):
    """A file of statistics that the recipe gives. `source` is its path or address, `form` its kind."""

    source: str
    form: str
    sha256: str


class NormStats(Artifact):
    """Normalization statistics. openpi reads `norm_stats` of this file; the other keys are the harness's.

    A dataset without a state has statistics of the actions alone. `given` is the file that they are from, if
    they are not computed from the data; min and max are the data's all the same.
    """

    FILE: ClassVar[str] = NORM_STATS_FILE
    norm_stats: dict[Literal["state", "actions"], DimensionStats]
    frames: int
    action_horizon: int
    findings: list[DegenerateDimension] = []
    given: Given | None = None

    @model_validator(mode="after")
    def _has_every_statistic(self) -> NormStats:
        lacking = [
            key for key, one in self.norm_stats.items() if not all((one.mean, one.std, one.q01, one.q99))
        ]
        if lacking:
            raise ValueError(f"norm_stats of {', '.join(lacking)} lack one of mean, std, q01 and q99")
        return self


Statistic = Literal["mean", "std", "q01", "q99"]


class Difference(Strict):
    """One statistic of one dimension. `share` is |theirs - ours| over our q99 - q01; None when that is 0."""

    key: Literal["state", "actions"]
    dimension: int
    statistic: Statistic
    ours: float
    theirs: float
    share: float | None


class Reach(Strict):
    """The range of our data in one dimension when normalized with their statistics.

    `low` and `high` are the ends, `q01` and `q99` our 1 % and 99 % quantiles. `outside` is the share of
    frames beyond [-1, 1].
    """

    key: Literal["state", "actions"]
    dimension: int
    low: float
    high: float
    q01: float
    q99: float
    outside: float | None


class Comparison(Artifact):
    """Comparison of our statistics with theirs: every statistic that both have, the largest difference first.

    `only_theirs` counts dimensions that ours lack. `inputs` is that of our statistics, `path` is where theirs
    lie, and `form` names the kind of their file. The furthest `reach` comes first.
    """

    FILE: ClassVar[str] = "comparison.json"
    path: str
    form: str = "openpi's norm_stats.json"
    differences: list[Difference]
    largest_share: float | None
    only_ours: dict[str, int]
    only_theirs: dict[str, int]
    reach: list[Reach] = []
    findings: list[str] = []
