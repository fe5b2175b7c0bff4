"""checkpoint.json: what `inspect` found."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict


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
