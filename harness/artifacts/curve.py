"""curve.json: the analysis of a run's loss curve, with its evidence."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict


class CurveFinding(Strict):
    """A fact about a log that a person should know.

    `steps` are the first few steps at which it was seen. `fix` is null if there is nothing to mend.
    """

    severity: Literal["error", "warning", "info"]
    code: str
    text: str
    steps: list[int] = []
    fix: str | None = None


class CurveSeries(Strict):
    """The curve, thinned to at most 2,000 stretches of equal length. Every list has one entry per stretch.

    `loss` is the mean of a stretch, `low` and `high` are its extremes. `smooth` is a Gaussian-weighted mean
    that leaves spikes out.
    """

    step: list[int]
    loss: list[float | None]
    low: list[float | None]
    high: list[float | None]
    smooth: list[float | None]
    grad_norm: list[float | None]
    learning_rate: list[float | None]


class Trend(Strict):
    """The fall of the loss over the logged steps. Intervals hold 95 %, one-sided rates as stated.

    `fall` is the total fall of a straight line, as a share of the loss at the start. `p_flat` is the
    probability that a flat run with noise of this autocorrelation looks at least as much like falling.
    """

    slope_per_1000_steps: float
    slope_low: float
    slope_high: float
    fall: float
    fall_low: float
    fall_high: float
    start_loss: float
    end_loss: float
    p_flat: float
    error_rate: float
    noise: float
    autocorrelation: float
    points: int
    effective_points: float
    estimator: str


class Learning(Strict):
    """The learning rate applied over the logged steps, in steps at the peak rate.

    `source` says where the rates come from.
    """

    source: str
    first: float
    last: float
    peak: float
    warmup_steps: int
    full_rate_steps: float
    negligible_below: float
    enough_from: float


class Seam(Strict):
    """The step in a log where one training session ends and another begins.

    `replayed` steps occur twice; `disagreeing` of them have other values the second time.
    """

    step: int
    kind: Literal["resume", "restart", "another run"]
    replayed: int
    disagreeing: int
    largest_difference: float | None


class Spike(Strict):
    """A rise that came back. `height` is its top over the level around it."""

    first_step: int
    last_step: int
    top: float
    height: float


class Jump(Strict):
    """A changepoint: the level of the loss before and after `step`, beyond what its trend explains."""

    step: int
    before: float
    after: float


class Throughput(Strict):
    """Seconds per step. `source` names the logged quantity they come from.

    `stalls` are pauses, by the step at which they end. `stalls_from` are the logged steps before them.

    No stall is part of the pace.
    """

    source: str
    median_step_s: float
    slow_step_s: float
    data_share: float | None
    stalls: list[tuple[int, float]]
    stalls_from: list[int] = []


class HeldOut(Strict):
    """The loss on data that is not trained on, thinned to at most 2,000 points.

    It has no part in the verdict.
    """

    points: int
    first: float
    last: float
    lowest: float
    lowest_at_step: int
    step: list[int]
    loss: list[float]


class Lines(Strict):
    """Counts of the lines that are not blank: those understood and those not, with an example of the latter.

    Records, states of a progress bar and greetings are understood.
    """

    understood: int
    others: int
    example: str | None


class Distance(Strict):
    """The distance of this curve from a reference, over the steps that both have.

    Differences are shares of the reference's level.
    """

    reference: str
    first_step: int | None
    last_step: int | None
    common_steps: int
    identical: int
    mean_difference: float | None
    low: float | None
    high: float | None
    largest_difference: float | None
    largest_at_step: int | None
    answer: Literal["identical", "within noise", "higher", "lower", "too little in common"]


class Curve(Artifact):
    """The verdict on a loss curve, its reasons, and what would be needed to be sure.

    `partial` lists the parts of the log that the answer leaves out.
    """

    FILE: ClassVar[str] = "curve.json"
    path: str
    form: Literal["run", "metrics", "console", "table"]
    recipe: str
    verdict: Literal["learning", "not learning", "diverged", "inconclusive"]
    reasons: list[str]
    needed: list[str]
    partial: list[str]
    lines: int
    points: int
    first_step: int
    last_step: int
    trend: Trend | None
    learning: Learning
    plateau_from_step: int | None
    findings: list[CurveFinding]
    seams: list[Seam]
    spikes: list[Spike]
    jumps: list[Jump]
    throughput: Throughput | None
    distances: list[Distance]
    series: CurveSeries
    held_out: HeldOut | None = None
    read: Lines | None = None
    unknown: dict[str, str] = {}
