"""calibration.json: what one card was measured to do, stage by stage.

The file of a machine lies in its cache. Those of cards that somebody measured are shipped in
`harness/plan/gpus/`. Both have this schema.
"""

from __future__ import annotations

from statistics import median
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.artifacts.base import Artifact
from harness.artifacts.plan import Levers
from harness.strict import Strict

# Limits beyond which a figure is none: a file may come from elsewhere, and predictions follow from it.
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
Size = Annotated[int, Field(gt=0, le=2**40)]
Words = Annotated[str, Field(max_length=1000)]
Figure = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Unknown = Annotated[dict[Words, Words], Field(max_length=100)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class CardState(Strict):
    """What NVML says of a card at one moment.

    `throttle` names the reasons that hold its clock down. `largest_compute_bytes` are those of the process
    that has most of the card among those that compute on it; 0 if there is none.
    """

    sm_clock_mhz: Figure | None = None
    memory_clock_mhz: Figure | None = None
    power_w: Figure | None = None
    power_limit_w: Figure | None = None
    temperature_c: Figure | None = None
    utilization_percent: Figure | None = None
    used_bytes: Bytes | None = None
    largest_compute_bytes: Bytes | None = None
    throttle: Annotated[list[Words], Field(max_length=20)] | None = None
    unknown: Unknown = {}


class Load(Strict):
    """What NVML said while a stage ran: extremes over the samples in which the card was not idle."""

    samples: Annotated[int, Field(ge=0, le=10**7)] = 0
    least_sm_clock_mhz: Figure | None = None
    most_power_w: Figure | None = None
    most_temperature_c: Figure | None = None
    throttle: Annotated[list[Words], Field(max_length=20)] = []


class Product(Strict):
    """Products [m, k] x [k, n] in bfloat16, `chained` of them in one program. 1: a call with its dispatch."""

    m: Size
    k: Size
    n: Size
    flops_per_s: Rate
    chained: Size


class Ceilings(Strict):
    """What the card does at best through JAX. The host's link is that of pinned memory, bytes a second."""

    products: Annotated[list[Product], Field(max_length=100)] = []
    copy_bytes_per_s: Rate | None = None
    to_host_bytes_per_s: Rate | None = None
    to_device_bytes_per_s: Rate | None = None
    both_ways_bytes_per_s: Rate | None = None
    unknown: Unknown = {}


class Context(Strict):
    """Bytes of the card that are in use outside of JAX's pool: `used_bytes` by NVML, less `pool_bytes`."""

    context_bytes: Bytes | None = None
    used_bytes: Bytes | None = None
    pool_bytes: Bytes | None = None
    unknown: Unknown = {}


class MeasuredPlan(Strict):
    """One plan as it ran, with random weights and made batches.

    `changes` are the keys of the shipped `recipe` that were other. The batch of the step is microbatch x
    accumulation steps of `levers`.
    `compiled_bytes` are those of the compiled step on the device, `planned_bytes` the planner's of its
    largest phase. `peak_bytes` are the allocator's since the process began, `init_peak_bytes` those before
    the first step. `limit_bytes` is the allocator's pool. `seconds` are of single steps, `predicted_s` the
    cost model's for the same step when it was measured. `compile_s` is less where JAX's cache had the step.
    """

    recipe: Name
    changes: Annotated[dict[Words, Any], Field(max_length=50)] = {}
    levers: Levers
    planned_bytes: Bytes | None = None
    compiled_bytes: Bytes | None = None
    compiled_host_bytes: Bytes | None = None
    init_peak_bytes: Bytes | None = None
    peak_bytes: Bytes | None = None
    limit_bytes: Bytes | None = None
    context_bytes: Bytes | None = None
    host_peak_bytes: Bytes | None = None
    compile_s: Seconds | None = None
    init_s: Seconds | None = None
    seconds: Annotated[list[Seconds], Field(min_length=1, max_length=1000)]
    predicted_s: Seconds | None = None
    unknown: Unknown = {}

    @property
    def step_s(self) -> float:
        """Seconds of a step: the median."""
        return median(self.seconds)

    @property
    def rows(self) -> int:
        """Samples of one step."""
        return self.levers.microbatch * self.levers.accumulation_steps * self.levers.devices


class Latency(Strict):
    """Seconds of one action chunk. `program` is what was sampled: serve's own, or the model's plain one."""

    program: Literal["serve", "sample_actions"] = "serve"
    recipe: Name
    batch: Size
    cameras: Annotated[int, Field(ge=0, le=100)]
    prompt_tokens: Size
    sampling_steps: Size
    median_s: Seconds
    least_s: Seconds | None = None
    most_s: Seconds | None = None
    compile_s: Seconds | None = None


class CalibrationStage(Strict):
    """One stage. `reason` says why it was skipped or why it failed; `marks` why it must not be used.

    `note` is what a reader should know of it. Exactly one of the last four fields is set if it was measured.
    """

    name: Name
    state: Literal["measured", "skipped", "failed", "timeout"]
    reason: Words | None = None
    note: Words | None = None
    marks: Annotated[list[Words], Field(max_length=20)] = []
    wall_s: Figure | None = None
    before: CardState | None = None
    during: Load | None = None
    after: CardState | None = None
    ceilings: Ceilings | None = None
    context: Context | None = None
    plan: MeasuredPlan | None = None
    sampling: Annotated[list[Latency], Field(min_length=1, max_length=20)] | None = None

    @model_validator(mode="after")
    def _has_what_was_measured(self) -> CalibrationStage:
        held = [self.ceilings, self.context, self.plan, self.sampling]
        if sum(each is not None for each in held) != (self.state == "measured"):
            raise ValueError(f"stage {self.name} is {self.state}, and has not just what belongs to that")
        return self

    @property
    def usable(self) -> bool:
        """Whether predictions may follow from it."""
        return self.state == "measured" and not self.marks


class Calibration(Artifact):
    """What one card does, and of which card, driver, versions and source that holds.

    `step_sha256` is the hash of the code that makes the step, `stages_sha256` that of the programs that
    measure. `flags` are XLA's. `measured` is the day, `how` what a reader must know of it, `origin` whose
    measurement it is, where it is not this machine's own.
    """

    FILE: ClassVar[str] = "calibration.json"
    card: Name
    uuid: Words | None = None
    compute_capability: Words | None = None
    total_bytes: Bytes | None = None
    driver: Words | None = None
    jax: Name
    jaxlib: Name | None = None
    plugin: Words | None = None
    step_sha256: Words | None = None
    stages_sha256: Words | None = None
    flags: Words = ""
    revision: Words | None = None
    cores: Figure | None = None
    host_ram_bytes: Bytes | None = None
    measured: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    how: Words | None = None
    origin: Words | None = None
    stages: Annotated[list[CalibrationStage], Field(max_length=100)] = []
    unknown: Unknown = {}

    @model_validator(mode="after")
    def _each_stage_once(self) -> Calibration:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("a stage stands twice")
        return self

    def plans(self) -> list[CalibrationStage]:
        """The stages of plans that predictions may follow from."""
        return [stage for stage in self.stages if stage.usable and stage.plan is not None]
