"""The contract of a served checkpoint: what the handshake's metadata says, so that no client has to guess."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from harness.artifacts import DimensionStats
from harness.checkpoint.locate import Located
from harness.recipe.dimensions import numbers_of
from harness.run.surroundings import version_of
from harness.serve.inputs import Reader
from harness.serve.names import PROMPT, SEED
from harness.serve.noise import MOST_SEED
from harness.serve.robot import Robot
from harness.serve.rtc_keys import KEYS, most_delay
from harness.serve.types import Engine

# Raised when a client that was written for the number before would be misled.
PROTOCOL = 1


def metadata_of(
    located: Located, reader: Reader, robot: Robot, engine: Engine, *, digest: str, steps: int
) -> dict[str, Any]:
    """The metadata, of texts, numbers, lists and maps alone. It names no path of this machine.

    `digest` is the sha256 of the checkpoint's parameters. What is unknown is None, and `unknown` says why.
    """
    recipe, data, size = reader.recipe, reader.recipe.data, reader.recipe.model.image_size
    relative = [number for number in numbers_of(data.relative) if number < robot.actions]
    units = _units(data.adapt)
    unknown = dict(robot.unknown)
    for key in ("state", "actions"):
        if key not in robot.names:
            unknown[f"{key}.names"] = "no dataset with names of its dimensions is named (--dataset)"
    if units is None:
        unknown["actions.units"] = "LeRobot datasets record none; they are those of the dataset"
    return {
        "protocol": "openpi",
        "contract_version": PROTOCOL,
        "harness_version": version_of("harness"),
        "checkpoint": {"sha256": digest, "step": located.step},
        "recipe": {"name": recipe.name, "sha256": recipe.sha256()},
        "cameras": [
            {
                "camera": camera,
                "keys": reader.cameras[camera],
                "height": size,
                "width": size,
                "channels": 3,
                "needed": camera not in reader.optional,
                "other_sizes": "resized with padding, as in training",
            }
            for camera in reader.cameras
        ],
        "state": {
            "keys": [list(names) for names in reader.states],
            "dimensions": robot.state,
            "names": robot.names.get("state"),
            "units": units,
            "needed": reader.needs_state,
        },
        "prompt": {"key": PROMPT, "needed": reader.needs_prompt, "replaced_by": data.prompt},
        "actions": {
            "key": "actions",
            "horizon": engine.horizon,
            "dimensions": robot.actions,
            "names": robot.names.get("actions"),
            "units": units,
            "answered": "absolute, in the dataset's units",
            "learned_relative_to_the_state": relative,
        },
        "noise_seed": {"key": SEED, "needed": False, "least": 0, "most": MOST_SEED},
        "rtc": _rtc(engine, recipe.train.most_delay),
        "norm_stats_sha256": stats_sha256(robot.stats),
        "fps": robot.fps,
        "sampling_steps": steps,
        "deviations": engine.deviations,
        "unknown": unknown,
    }


def stats_sha256(stats: dict[str, DimensionStats]) -> str:
    """The sha256 of the statistics that observations and actions are normalized with."""
    body = {key: one.model_dump(mode="json") for key, one in stats.items()}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def digest_of(located: Located, base: str | None) -> str:
    """The sha256 of the checkpoint's files of parameters; with those of its base, if it has one."""
    from harness.checkpoint.weights import directory_sha256, params_directories

    found = [directory_sha256(directory) for directory in params_directories(located.path, base=base)]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _rtc(engine: Engine, trained: int) -> dict[str, Any]:
    """Whether and how a chunk goes on from the previous one; `trained` is the longest delay, 0 if none."""
    if engine.rtc is None:
        return {"mode": "off"}
    most = most_delay(engine.horizon, trained)
    return {"mode": engine.rtc, "keys": list(KEYS), "least_delay": 0, "most_delay": most}


def _units(adapt: str | None) -> str | None:
    """The units of states and actions where the recipe says them."""
    if adapt == "aloha":
        return "radians of six joints an arm; gripper 0 (closed) to 1 (open)"
    return None
