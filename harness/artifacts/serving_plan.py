"""serving_plan.json: whether a card can serve a recipe's policy, and how fast it would be."""

from __future__ import annotations

from typing import ClassVar

from harness.artifacts.base import Artifact
from harness.strict import Strict


class ServedShape(Strict):
    """One shape of the program: its rows, with prompts padded to `prompt_tokens`.

    *Compiled*, by XLA for this card: `device_bytes` (its buffer assignment, with the weights), `breakdown`,
    `kernels`, `moved_bytes` and `operations` (from the scheduled program, of one call).

    *Predicted*, by `harness.plan.serving`: `seconds` of a call, with its parts, and `floor_seconds`, below
    which no program of these operations and weights can be. Nothing here was measured on the card. None: no
    card's figures are known, and `unknown` says why.
    """

    prompt_tokens: int
    device_bytes: int
    breakdown: dict[str, int]
    kernels: int | None = None
    moved_bytes: int | None = None
    operations: int | None = None
    seconds: float | None = None
    launch_seconds: float | None = None
    work_seconds: float | None = None
    floor_seconds: float | None = None
    unknown: dict[str, str] = {}


class ServingPlan(Artifact):
    """How a device would serve the policy of a recipe, batch by batch of `batch` rows.

    `usable_bytes` is what the device has for it, None if that is not known. `model` says in words how seconds
    were predicted.
    """

    FILE: ClassVar[str] = "serving_plan.json"
    recipe: str
    device: str
    cameras: list[str]
    batch: int
    steps: int
    usable_bytes: int | None
    fits: bool | None
    shapes: list[ServedShape]
    model: str
    notes: list[str] = []
