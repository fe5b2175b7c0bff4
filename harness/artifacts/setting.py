"""setting.json: what every episode of an evaluation has in common, written before the first of them."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.artifacts.base import Artifact
from harness.artifacts.dataset import DimensionStats
from harness.artifacts.episodes import MOST_LINES, Count, Name
from harness.redact import redact_value
from harness.strict import Strict

# What two settings of the same episodes may differ in.
APART = {"asked", "inputs", "schema_version", "prompts", "unknown"}
Value = str | int | float | bool | None
Policy = Literal["checkpoint", "server", "replay", "zero", "scripted"]


class Protocol(Strict):
    """A protocol by name and version, with each of its values by a dotted key, such as `max_steps.libero_10`.

    A `version` of None is one that its author did not number.
    """

    name: Annotated[str, Field(max_length=100)]
    version: int | None
    values: dict[str, Value]


class Evaluated(Strict):
    """The policy that acts. What is not known of it is None.

    `sha256` is that of its checkpoint. `data_sha256` are those of the datasets that it learned from.
    `statistics` are those by which it is served, `action_horizon` the actions that it gives at a query.
    `sampling_steps` is the number of Euler steps of one query. `noise_seed` is what the noise of every query
    follows from; None where the server draws it in the order of all calls. `batch` are the rows of a call:
    another number of them rounds otherwise.
    """

    kind: Policy
    name: Annotated[str, Field(max_length=500)]
    sha256: str | None = None
    step: int | None = None
    recipe: dict[str, Any] | None = None
    recipe_sha256: str | None = None
    data_sha256: list[str] | None = None
    statistics: dict[Literal["state", "actions"], DimensionStats] | None = None
    statistics_sha256: str | None = None
    action_horizon: int | None = None
    sampling_steps: int | None = None
    noise_seed: int | None = None
    batch: int | None = None


class Asked(Strict):
    """Which episodes are asked: the tasks of each suite, the first `episodes` of each, each `repeats` times.

    `order` "task" drives one task after the other, which needs the fewest environments. "mixed" mixes all
    episodes by `seed`, as stopping early needs it. `only`: of all these, only the (suite, task, episode) that
    are named, such as those that a recording exists of.
    """

    tasks: dict[Name, list[Count]]
    episodes: Annotated[int, Field(ge=1, le=10_000)]
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: Count = 0
    order: Literal["task", "mixed"] = "task"
    only: Annotated[list[tuple[Name, Count, Count]], Field(max_length=MOST_LINES)] | None = None

    @model_validator(mode="after")
    def _each_task_once(self) -> Asked:
        if not self.tasks or any(not tasks or len(set(tasks)) < len(tasks) for tasks in self.tasks.values()):
            raise ValueError("each suite has tasks, each of them once")
        if sum(map(len, self.tasks.values())) * self.episodes * self.repeats > MOST_LINES:
            raise ValueError(f"more than {MOST_LINES:,} episodes are asked")
        return self


class Setting(Artifact):
    """What the episodes of one evaluation have in common.

    `versions` are those of the programs that simulate, by name. `renderer` is what draws; renderers that draw
    the same bytes, such as OSMesa and Mesa's EGL, have one name. `scenes_sha256` is the table of fixture
    poses. `deviations` name every departure from the protocol. `prompts` are the words of each task of a
    suite, by the task's number. `unknown` says why a value is None.
    """

    FILE: ClassVar[str] = "setting.json"
    RECORDED: ClassVar[bool] = True
    evaluated: Evaluated
    protocol: Protocol
    versions: dict[str, str]
    renderer: str | None
    scenes_sha256: str | None
    asked: Asked
    deviations: list[str] = []
    prompts: dict[Name, list[Annotated[str, Field(max_length=500)]]] = {}
    unknown: dict[str, str] = {}

    def sha256(self) -> str:
        """The hash that each line of episodes.jsonl carries; it leaves out which episodes are asked."""
        # As it is written: a file has no secrets, such as one in the address of a server.
        value = redact_value(self.model_dump(mode="json", exclude=APART))
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
