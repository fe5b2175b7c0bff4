"""openpi.json: the true effect of another trainer's command line."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.artifacts.doctor import Finding
from harness.artifacts.plan import Plan
from harness.strict import Strict


class OptionChange(Strict):
    """An option whose value differs from the published configuration's. None if that has no such option."""

    option: str
    value: Any
    published: Any


class OpenpiCommand(Artifact):
    """The effect of a command line of openpi or another trainer.

    `options` are those given, `effective` all of them.

    `trained` names the trained parameters as recipes do, if recipes have a name for them.

    `param_norm` is the value that the log must show at step 0, from the released weights. `plan` holds the
    bytes for the card that was asked for or found. Without a card its `device` is "none": `device_bytes` is
    known, whether it fits is not. `recipe` is the harness's recipe for what `meant` says. `trainer` is the
    program that the line starts. For trainers other than openpi's JAX trainer, `deviations` are the ways in
    which they differ. `cut` are the shell's own parts of the line.
    """

    FILE: ClassVar[str] = "openpi.json"
    commit: str
    trainer: Literal["openpi", "openpi-pytorch", "lerobot", "other"] = "openpi"
    command: str
    config: str
    model: str
    options: dict[str, Any]
    effective: dict[str, Any]
    freezes: bool
    trained: str | None = None
    parameters_total: int | None = None
    parameters_trained: int | None = None
    param_norm: float | None = None
    device_bytes: int | None = None
    fits: bool | None = None
    plan: Plan | None = None
    changes: list[OptionChange] = []
    deviations: list[str] = []
    findings: list[Finding] = []
    recipe: dict[str, Any] | None = None
    meant: str = ""
    command_meant: str | None = None
    cut: list[str] = []
    unknown: dict[str, str] = {}
