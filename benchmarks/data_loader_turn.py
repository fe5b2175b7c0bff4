"""One turn of a measured side in a fresh process. Part of `data_loader.py` and `data_stats.py`."""

from __future__ import annotations

import json
import os
import subprocess


def run(command: list[str]) -> dict[str, float]:
    """The figures that `command` prints as its last line of JSON. It has no network."""
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    figures: dict[str, float] = json.loads(
        [line for line in done.stdout.splitlines() if line.startswith("{")][-1]
    )
    return figures
