"""openpi.json: what another trainer's command line would really do."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.artifacts.doctor import Finding
from harness.artifacts.plan import Plan
from harness.strict import Strict


class OptionChange(Strict):
    """An option whose value is not the published configuration's; None where that has no such option."""

    option: str
    value: Any
    published: Any


class OpenpiCommand(Artifact):
    """`options` are those given, `effective` all of them.

    `trained` names who is trained as recipes do, where they have a name for it.

    `param_norm` is what the log must show at step 0, from the released weights. `plan` holds the bytes: for
    the card asked for or found, else for none (`device` "none"), where `device_bytes` is known and whether it
    fits is not. `recipe` is ours that does what `meant` says. `trainer` is whose program the line starts: of
    the others than openpi's JAX trainer `deviations` are the ways in which it differs. `cut` are the shell's
    own parts of the line.
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
