"""prediction.json: the actions that a checkpoint predicts at one frame."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from harness.artifacts.base import Artifact


class Prediction(Artifact):
    """The actions that a checkpoint predicts at one frame, beside the recorded ones, in the dataset's units.

    `predicted` and `recorded` are [action_horizon][actions]. `is_pad` marks times past the episode's end,
    where the last action is repeated. `mean_absolute_error`, one per dimension, leaves them out.
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

    @model_validator(mode="after")
    def _is_a_chunk(self) -> Prediction:
        actions = len(self.mean_absolute_error)
        if not self.action_horizon == len(self.predicted) == len(self.recorded) == len(self.is_pad) > 0:
            raise ValueError("predicted, recorded and is_pad are not action_horizon long")
        if any(len(row) != actions for row in (*self.predicted, *self.recorded)):
            raise ValueError(f"an action does not have the {actions} dimensions of mean_absolute_error")
        return self
