"""Makes the recorded episodes that ship inside the package, from a dataset of a scripted policy.

    $HARNESS_SIMULATOR/bin/python ci/make_recorded.py ACTIONS

ACTIONS is an .npz with the actions float32 [n, 7] of each episode under SUITE/TASK/INITIAL_STATE. They were
recorded after env.seed(INITIAL_STATE) and one reset; the fixtures' poses after that reset are kept with them.
`--actions DATASET OUT` makes ACTIONS in the harness's own Python: DATASET is a LeRobot v2.1 dataset whose
episodes are those of EPISODES, in this order.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# (suite, task, initial state) of each episode.
EPISODES = (
    ("libero_goal", 1, 0), ("libero_goal", 4, 0), ("libero_goal", 6, 1), ("libero_goal", 8, 3),
    ("libero_object", 0, 0), ("libero_object", 2, 1), ("libero_object", 5, 0), ("libero_object", 8, 0),
    ("libero_spatial", 0, 0), ("libero_spatial", 0, 1), ("libero_spatial", 2, 2), ("libero_spatial", 3, 1),
)  # fmt: skip


def actions(dataset: Path, out: Path) -> None:
    """Write the actions of a dataset's episodes under the names of EPISODES."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = {}
    for number, name in enumerate(EPISODES):
        table = pq.read_table(dataset / f"data/chunk-000/episode_{number:06d}.parquet", columns=["actions"])
        found["/".join(map(str, name))] = np.array(table["actions"].to_pylist(), np.float32)
    np.savez_compressed(out, **found)


def record(source: Path) -> None:
    """Write the package's file: actions with the poses of the fixtures."""
    from harness.simulate import controls, environment, scenes

    found: dict[str, Any] = {}
    with np.load(source, allow_pickle=False) as file:
        for name in file.files:
            suite, task, episode = name.split("/")
            env = environment.make(suite, int(task), resolution=256, renderer=False)
            poses = next(scenes.serial(env, int(episode)))
            env.close()
            found[f"{name}/actions"] = file[name]
            found |= {f"{name}/pose/{fixture}": pose for fixture, pose in poses.items()}
    np.savez_compressed(controls.RECORDED, **found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--actions"]:
        actions(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        record(Path(sys.argv[1]))
        sys.stdout.flush()
        os._exit(0)
