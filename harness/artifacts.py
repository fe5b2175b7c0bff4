"""The schema of every file of a run directory. Verbs talk to each other through these and nothing else.

An unknown value is `None`, and `unknown[<field>]` says why; it is never a made-up 0. Bytes are `int`, times seconds.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from harness.strict import Strict


class Artifact(Strict):
    """A file of a run. `inputs` is a hash of all it was computed from: when that has not changed, the verb is skipped."""

    FILE: ClassVar[str]
    schema_version: int = 1
    inputs: str = ""


# --- probe -----------------------------------------------------------------------------------------------------------


class GpuProcess(Strict):
    pid: int
    name: str | None = None
    used_bytes: int | None = None


class MigDevice(Strict):
    """One MIG instance: to CUDA it is a device of its own."""

    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    visible: bool = True
    unknown: dict[str, str] = {}


class Gpu(Strict):
    """One GPU as NVML sees it, before JAX starts. `error` set: it cannot be used, and says why."""

    index: int
    name: str | None = None
    uuid: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    mig_mode: bool | None = None
    mig_devices: list[MigDevice] = []
    display_active: bool | None = None
    integrated: bool | None = None
    visible: bool = True
    foreign_processes: list[GpuProcess] | None = None
    error: str | None = None
    unknown: dict[str, str] = {}


class Disk(Strict):
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    writable: bool | None = None
    unknown: dict[str, str] = {}


class Host(Strict):
    """RAM, swap and cores are what this process may use: the cgroup's limits where there are any. `container` is a kind, or "none"."""

    hostname: str | None = None
    kernel: str | None = None
    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    swap_bytes: int | None = None
    shm_bytes: int | None = None
    cores: float | None = None
    wsl: bool | None = None
    container: str | None = None
    disks: list[Disk] = []
    unknown: dict[str, str] = {}


class Machine(Artifact):
    FILE: ClassVar[str] = "machine.json"
    gpus: list[Gpu] = []
    gpu_error: str | None = None
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    visible_devices: str | None = None
    host: Host
    unknown: dict[str, str] = {}


# --- plan ------------------------------------------------------------------------------------------------------------


class Levers(Strict):
    """How the step is carried out. All of these are exact: they do not change what the recipe says is learned."""

    platform: Literal["cpu", "cuda"]
    devices: int = Field(1, gt=0)
    fsdp: int = Field(1, gt=0)
    microbatch: int = Field(gt=0)
    accumulation_steps: int = Field(1, gt=0)
    prompt_tokens: int = Field(gt=0)
    cameras: list[str]
    remat: Literal["block", "none"] = "block"


class Candidate(Strict):
    levers: Levers
    device_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    seconds_per_step: float | None = None
    flops_per_step: float | None = None
    deviations: list[str] = []
    verdict: Literal["fits", "rejected"]
    reason: str
    source: Literal["atlas", "compiled", "interpolated"]
    breakdown: dict[str, int] = {}
    unknown: dict[str, str] = {}


class Plan(Artifact):
    FILE: ClassVar[str] = "plan.json"
    recipe: str
    recipe_sha256: str
    device: str
    device_uuid: str | None = None
    usable_bytes: int | None = None
    parameters_total: int
    parameters_trained: int
    chosen: Candidate | None
    candidates: list[Candidate]


# --- data, stats -----------------------------------------------------------------------------------------------------


class Feature(Strict):
    dtype: str
    shape: list[int]


class Dataset(Artifact):
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
    longest_prompt_tokens: int
    prompt_tokens: int
    total_bytes: int
    findings: list[str] = []


class DimensionStats(Strict):
    """One vector per statistic, as openpi's norm_stats.json has them (plus the exact min and max)."""

    mean: list[float]
    std: list[float]
    q01: list[float]
    q99: list[float]
    min: list[float] | None = None
    max: list[float] | None = None


class DegenerateDimension(Strict):
    key: Literal["state", "actions"]
    dimension: int
    problem: str
    largest_normalized: float | None
    fix: str


class NormStats(Artifact):
    """openpi reads `norm_stats` of this file; the keys beside it are ours."""

    FILE: ClassVar[str] = "norm_stats.json"
    norm_stats: dict[Literal["state", "actions"], DimensionStats]
    frames: int
    action_horizon: int
    findings: list[DegenerateDimension] = []


Statistic = Literal["mean", "std", "q01", "q99"]


class Difference(Strict):
    """One statistic of one dimension. `share` is |theirs - ours| over our q99 - q01; None when that is 0."""

    key: Literal["state", "actions"]
    dimension: int
    statistic: Statistic
    ours: float
    theirs: float
    share: float | None


class Comparison(Artifact):
    """Every statistic that both have, the largest difference first; `only_theirs` counts dimensions that ours lack.

    `inputs` is that of our statistics, and `path` is where theirs lie.
    """

    FILE: ClassVar[str] = "comparison.json"
    path: str
    differences: list[Difference]
    largest_share: float | None
    only_ours: dict[str, int]
    only_theirs: dict[str, int]


# --- train -----------------------------------------------------------------------------------------------------------


class Manifest(Artifact):
    """What this run is, written before step 0."""

    FILE: ClassVar[str] = "manifest.json"
    run: str
    created: str
    recipe: dict[str, Any]
    recipe_sha256: str
    plan: Candidate
    dataset_sha256: str
    dataset_revision: str | None
    norm_stats_sha256: str
    parameters_total: int
    parameters_trained: int
    weights: dict[str, Any]
    source_revision: str | None
    lock_sha256: str | None
    image: str | None
    packages: dict[str, str]
    python: str
    xla_flags: str
    device: str
    step_fingerprint: str
    compiled_bytes: dict[str, int]


class Metrics(Strict):
    """One line of metrics.jsonl. `grad_norm` is before clipping; `param_norm` counts kernels, after the update."""

    step: int
    loss: float
    grad_norm: float
    param_norm: float
    learning_rate: float
    step_s: float
    data_s: float
    time: float


# --- predict ---------------------------------------------------------------------------------------------------------


class Prediction(Artifact):
    """What a checkpoint would do at one frame, beside what was done there, in the dataset's own units.

    `predicted` and `recorded` are [action_horizon][actions]. `is_pad` marks times past the episode's end, where the last action
    is repeated; `mean_absolute_error`, one a dimension, leaves them out.
    """

    FILE: ClassVar[str] = "prediction.json"
    checkpoint: str
    step: int | None
    dataset: str
    episode: int
    frame: int
    task: str
    action_horizon: int
    sampling_steps: int
    seed: int
    device: str
    predicted: list[list[float]]
    recorded: list[list[float]]
    is_pad: list[bool]
    mean_absolute_error: list[float]


# --- inspect ---------------------------------------------------------------------------------------------------------


class CheckpointItem(Strict):
    name: str
    bytes: int
    arrays: int | None = None


class CheckpointStep(Strict):
    step: int | None
    path: str
    complete: bool
    items: list[CheckpointItem]
    bytes: int
    missing: list[str] = []


class InterruptedSave(Strict):
    path: str
    step: int | None
    missing: list[str]
    age_s: float
    bytes: int
    safe_to_delete: bool
    reason: str


class LoraReport(Strict):
    present: bool | None
    rank: dict[str, int] = {}
    parameters: int = 0


class GroupReport(Strict):
    parameters: int
    bytes: int
    arrays: int
    dtypes: list[str]
    trained: int | None = None
    non_finite: int | None = None
    norm: float | None = None


class Checkpoint(Artifact):
    """`lora`, `parameters` and what follows describe `step`, the newest whole one. `partial`: something could not be read; `unknown` says what."""

    FILE: ClassVar[str] = "checkpoint.json"
    path: str
    layout: Literal["harness", "openpi"] | None
    steps: list[CheckpointStep]
    interrupted: list[InterruptedSave]
    step: int | None = None
    lora: LoraReport
    parameters: dict[str, GroupReport]
    parameters_total: int | None = None
    parameters_trained: int | None = None
    ema: bool | None = None
    non_finite: int | None = None
    partial: bool = False
    findings: list[str] = []
    unknown: dict[str, str] = {}
