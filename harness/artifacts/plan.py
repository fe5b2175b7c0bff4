"""plan.json: how this machine carries out a recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.artifacts.base import Artifact
from harness.strict import Strict


class Levers(Strict):
    """How the step is carried out. All of these are exact: they do not change what the recipe says is learned.

    global batch = microbatch x accumulation_steps x devices. `devices` hold `devices / fsdp` replicas of the state, each in `fsdp` shards.
    `host` names the parts of the state that lie in pinned host memory between their uses. `compute_copy`: the device keeps bfloat16
    copies of what the model would cast to bfloat16 anyway, and takes the float32 masters only for the update.
    """

    platform: Literal["cpu", "cuda"]
    devices: int = Field(1, gt=0)
    fsdp: int = Field(1, gt=0)
    microbatch: int = Field(gt=0)
    accumulation_steps: int = Field(1, gt=0)
    prompt_tokens: int = Field(gt=0)
    cameras: list[str]
    remat: Literal["block", "none"] = "block"
    attention: Literal["full", "chunked", "flash"] = "full"
    compute_copy: bool = False
    host: list[Literal["ema", "moments", "masters"]] = []

    @model_validator(mode="after")
    def _shards_divide_devices(self) -> Levers:
        if self.devices % self.fsdp:
            raise ValueError(f"fsdp ({self.fsdp}) does not divide devices ({self.devices})")
        return self


class Candidate(Strict):
    """One plan. `changes` are the recipe keys that it needs changed, each explained in `deviations`; none for an exact plan.

    `phases` holds the device bytes of init, load, step and save where they are known; `device_bytes` is the largest.
    """

    levers: Levers
    changes: dict[str, Any] = {}
    deviations: list[str] = []
    device_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    phases: dict[str, int] = {}
    seconds_per_step: float | None = None
    flops_per_step: float | None = None
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
