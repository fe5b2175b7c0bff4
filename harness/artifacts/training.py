"""manifest.json and the lines of metrics.jsonl."""

from __future__ import annotations

from typing import Any, ClassVar

from harness.artifacts.base import Artifact
from harness.artifacts.plan import Candidate
from harness.strict import Strict


class Manifest(Artifact):
    """What this run is, written before step 0.

    `environment` holds the variables that change what is computed, by a list of names, so that no secret comes along. `machine` is
    what it ran on. `unknown` says why a field is None.
    """

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
    environment: dict[str, str] = {}
    machine: dict[str, Any] = {}
    device: str
    step_fingerprint: str
    compiled_bytes: dict[str, int]
    unknown: dict[str, str] = {}


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
