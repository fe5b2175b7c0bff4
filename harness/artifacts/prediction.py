"""prediction.json: what a checkpoint would do."""

from __future__ import annotations

from typing import ClassVar

from harness.artifacts.base import Artifact


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
