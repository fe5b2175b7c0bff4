"""serving.json and serve_check.json: how a served checkpoint answered, and whether as `predict` does."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict


class Stage(Strict):
    """Percentiles of a part of a request, in milliseconds. None if no request came so far."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Serving(Artifact):
    """What a server did until it ended.

    `stages` are decode (frame to the model's inputs), wait (for the device), infer (the batch), encode
    (actions to a frame), and total (frame received to frame sent). They are of the last `timed` answers.
    `refused` are requests that broke the contract, `failed` those that the model could not compute, `lost`
    those whose client had gone. `prompts_cut` are requests of whose prompt the model saw only the beginning.
    `attention` says what makes that of the action rows: kernels of our own or
    XLA's operations. `record` says what became of --record; None without it.
    """

    FILE: ClassVar[str] = "serving.json"
    checkpoint: str
    checkpoint_sha256: str
    step: int | None
    device: str
    sampling_steps: int
    batch: int
    seconds: float
    connections: int
    most_clients: int
    answered: int
    refused: int
    failed: int
    lost: int
    prompts_cut: int = 0
    rows_a_batch: float | None
    timed: int
    stages: dict[Literal["decode", "wait", "infer", "encode", "total"], Stage]
    deviations: list[str] = []
    attention: Literal["kernels", "xla"] = "xla"
    record: str | None = None
    ended_by: str


class ServeCheck(Artifact):
    """Recorded frames through the client's path, beside `harness predict` on the same frames and noise.

    `largest` is the largest difference of an action as a share of what is allowed in its dimension; 0 is bit
    for bit. `first_difference` names where the first one beyond the tolerance lies.
    """

    FILE: ClassVar[str] = "serve_check.json"
    checkpoint: str
    step: int | None
    dataset: str
    device: str
    sampling_steps: int
    frames: list[int]
    largest: float | None
    tolerance: float
    first_difference: str | None
    verdict: Literal["equal", "differs"]
