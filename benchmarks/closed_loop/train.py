"""The stage `train`: `harness train` on what was recorded, resumed if the run is there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RECIPE = "libero_small"
# Of each recorded task some episodes are kept out of training, so that `look` has frames that are new.
HELD = "train.holdout={episodes: 0.05}"


def harness(*arguments: str) -> list[str]:
    """The command line of a verb, in this Python."""
    return [sys.executable, "-m", "harness.cli", *arguments]


def train(directory: Path, name: str, steps: int | None) -> None:
    """Trains the recipe on DIR/dataset in DIR/NAME, and goes on with a run that is there.

    A run that was begun with fewer episodes than there are now belongs to other data, and is refused.
    """
    run = directory / name
    command = harness("train", "--run", str(run), "--recipe", RECIPE, "--set", HELD)
    # A path in quotes, as YAML reads any.
    command += ["--set", f"data.dataset={json.dumps(str(directory / 'dataset'))}"]
    if (run / "checkpoints").is_dir():
        command = harness("train", "--run", str(run), "--resume")
    if steps is not None:
        command += ["--steps", str(steps)]
    subprocess.run(command, check=True)
