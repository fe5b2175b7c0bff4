"""evaluation.json: what the episodes of an evaluation say, and what that says beside another or a claim."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.artifacts.base import Artifact
from harness.artifacts.setting import Setting, Value
from harness.strict import Strict

Word = Literal["reproduces", "below", "above", "inconclusive", "not comparable"]
Status = Literal["equal", "differs", "unknown"]
ALL = "all"


Share = Annotated[float, Field(ge=0, le=1)]
# A rate less another.
Less = Annotated[float, Field(ge=-1, le=1)]
Many = Annotated[int, Field(ge=0)]


class Range(Strict):
    """The ends of a 95 % interval."""

    low: Less
    high: Less


class Rate(Strict):
    """The successes of a suite, of one of its tasks, or of all.

    `scenes` counts different scenes: repeats of a scene are no more scenes. `rate` is the mean over the tasks
    of the mean over their scenes; None without a measured episode. `interval` is for these tasks. `others` is
    for tasks like these; None with few tasks. `errors` and `missing` were asked and not measured; they are in
    no rate.
    """

    suite: str
    task: int | None = None
    successes: Many
    measured: Many
    errors: Many
    missing: Many
    scenes: Many
    rate: Share | None
    interval: Range
    others: Range | None = None


class ClaimedSuite(Strict):
    """The published successes of a suite."""

    successes: Many
    episodes: Annotated[int, Field(ge=1)]
    tasks: Many


class Against(Strict):
    """What the evaluation is compared with: another evaluation, or a published claim with its source."""

    kind: Literal["evaluation", "claim"]
    name: str
    source: str
    claimed: dict[str, ClaimedSuite] = {}
    episodes_sha256: str | None = None


class Apart(Strict):
    """One field of the setting that is not equal, or not known on a side.

    `decides`: a difference here forbids a verdict.
    """

    field: str
    status: Status
    ours: Value
    theirs: Value
    decides: bool
    why: str


class Pairs(Strict):
    """Scenes that both have driven. `p` is the exact McNemar test's; `alone` are scenes of one side only."""

    scenes: int
    only_ours: int
    only_theirs: int
    p: float
    ours_alone: int
    theirs_alone: int


class Difference(Strict):
    """Our rate less theirs, of a suite or of all, with the interval that decides and a second one by score.

    `level` is the interval's. `verdict` is None where there is nothing to compare. `needed` says how many
    episodes would decide; None if it is decided, or if none would, with the reason in `reason`.
    """

    scope: str
    ours: Share
    theirs: Share
    difference: Less
    level: Share
    interval: Range
    by_score: Range
    method: str
    pairs: Pairs | None = None
    verdict: Word
    reason: str
    needed: int | None = None


class Sequential(Strict):
    """The paired test that may be looked at after every pair.

    `e_differs` is the evidence that the rates differ, `e_margin` that ours is not lower by the margin, after
    the first `pairs` of the asked order. It stops at 1 / alpha; `stopped_at` is the pair at which it did.
    """

    alpha: float
    pairs: int
    e_differs: float
    e_margin: float
    stopped_at: int | None
    verdict: Word | None


class WhyRow(Strict):
    """One possible cause of a difference: what is known of it, and what it weighs."""

    cause: str
    status: Status
    says: str
    details: list[str] = []


class Evaluation(Artifact):
    """An evaluation with its verdict.

    `episodes_sha256` is over the measured episodes in the order of their keys. `against` is None if it was
    compared with nothing; `verdict` is then None too. `field` is what makes it not comparable. `margin` is a
    share: a rate that is lower by more is not reproduced. `unreadable`, `repeated` and `conflicts` count
    lines of episodes.jsonl that count in no rate.
    """

    FILE: ClassVar[str] = "evaluation.json"
    setting: Setting
    setting_sha256: str
    episodes_sha256: str
    tasks: list[Rate]
    suites: list[Rate]
    all: Rate
    interval: str
    against: Against | None = None
    margin: Share
    verdict: Word | None = None
    field: str | None = None
    reason: str = ""
    apart: list[Apart] = []
    differences: list[Difference] = []
    sequential: Sequential | None = None
    why: list[WhyRow] = []
    errors: dict[str, int] = {}
    unreadable: int = 0
    repeated: int = 0
    conflicts: int = 0
    notes: list[str] = []

    @model_validator(mode="after")
    def _compared_with_something(self) -> Evaluation:
        if self.against is None and (self.verdict or self.differences or self.why):
            raise ValueError("a verdict needs what it was compared with")
        return self
