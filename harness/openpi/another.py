"""The answer for a trainer that is neither openpi's nor LeRobot's: what it trains is not known here."""

from __future__ import annotations

import shlex

from harness.artifacts import Finding, OpenpiCommand
from harness.openpi import configs as openpi_configs
from harness.openpi.pytorch import UNKNOWN
from harness.openpi.trainer_line import Line


def is_another(line: Line) -> bool:
    """True for a program of somebody else's that does not name one of openpi's configurations."""
    return line.trainer == "other" and (not line.arguments or line.arguments[0] not in openpi_configs.names())


def explain_another(line: Line) -> OpenpiCommand:
    """The command of another trainer. Every fact about the training is unknown, with the reason."""
    starts = f" ({line.launcher} starts it)" if line.launcher else ""
    finding = Finding(
        severity="error",
        check="another-trainer",
        got=f"{line.program}{starts} is neither openpi's nor LeRobot's trainer",
        need="scripts/train.py, scripts/train_pytorch.py or lerobot-train: only their options are known here",
        fix="harness train --recipe pi05_libero",
    )
    why = f"{line.program} is another trainer: what it trains is not known here"
    return OpenpiCommand(
        commit="",
        trainer="other",
        command=shlex.join([line.program, *line.arguments]),
        config="",
        model="unknown",
        options={},
        effective={},
        freezes=False,
        findings=[finding],
        cut=line.cut,
        unknown=dict.fromkeys(("commit", "model", *UNKNOWN), why),
    )
