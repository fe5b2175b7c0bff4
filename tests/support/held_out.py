"""Lines of held_out.jsonl, made up, and runs that have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.artifacts.held_out import HeldOutLine, Switch
from harness.run.directory import RunDir
from harness.run.steps import COMMIT, METADATA, OCDBT_MANIFEST, RECORD, TREES


def line(step: int, loss: list[float | None], error: float = 0.1, **more: object) -> HeldOutLine:
    """A line of three dimensions, the last of which does not move."""
    body = {
        "step": step,
        "parameters": "average",
        "rows_sha256": "a" * 64,
        "sampling_steps": 10,
        "episodes": list(range(len(loss))),
        "frames": [4] * len(loss),
        "loss": loss,
        "error": [[error, 2 * error, 0.0]] * len(loss),
        "spread": [1.0, 2.0, None],
        "switches": [
            Switch(dimension=2, episode=0, offset=offset, room=(5, 4)) for offset in (0, 2, -1, None)
        ],
        "seconds": 1.0,
        "time": float(step),
    }
    return HeldOutLine.model_validate(body | more)


def run_of(path: Path, lines: list[HeldOutLine], on_disk: list[int]) -> RunDir:
    """A run with these lines, and with whole checkpoints as far as names tell."""
    run = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    run.held_out.write_text("".join(each.model_dump_json() + "\n" for each in lines))
    for step in on_disk:
        for name in (
            COMMIT,
            RECORD,
            *(f"{item}/{part}" for item in TREES for part in (METADATA, OCDBT_MANIFEST)),
        ):
            file = run.checkpoints / str(step) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    return run


def falling(
    episodes: int, saves: int, *, fall: float = 0.1, noise: float = 0.01, seed: int = 0
) -> list[HeldOutLine]:
    """Saves at steps 10, 20, …, each lower than the one before by about `fall`; episodes differ much more."""
    stream = np.random.RandomState(seed)
    levels = stream.uniform(1, 9, episodes)
    return [
        line(10 * (i + 1), (levels + 1 - fall * i + noise * stream.standard_normal(episodes)).tolist())
        for i in range(saves)
    ]
