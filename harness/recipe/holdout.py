"""The part of a recipe that keeps episodes out of training, to measure on them at every save."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, field_validator

from harness.recipe.episodes import canonical
from harness.strict import Strict


class Holdout(Strict):
    """The episodes that are never trained on, and what is measured on them.

    - `episodes`: how many (3), which share (0.05), or which ([0, 7, "20-29"]), of those that data.episodes
      leaves. A number and a share are drawn by `seed`. Each dataset of a mixture holds out its own.
    - `frames`: the number of their frames that each save is measured on, shared evenly by the datasets of a
      mixture and by the episodes. An episode gives at least one.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    episodes: int | float | list[int | str]
    seed: int = Field(0, ge=0, lt=2**32)
    frames: int = Field(64, gt=0, le=1_000_000)

    @field_validator("episodes", mode="before")
    @classmethod
    def _form(cls, value: Any) -> Any:
        """One message for all forms; pydantic's own would list the faults of each."""
        count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        share = isinstance(value, float) and 0 < value < 1
        if not count and not share and not (isinstance(value, list) and value):
            raise ValueError(
                "is neither a number (3), nor a share below 1 (0.05), nor a list ([0, 7, 20-29])"
            )
        return canonical(value) if isinstance(value, list) else value
