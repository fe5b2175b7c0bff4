"""One episode from its scene to its outcome, by a protocol, with digests of all that it saw and did."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.errors import HarnessError
from harness.simulate.controls import Control
from harness.simulate.environment import Environment
from harness.simulate.frames import Array
from harness.simulate.observation import Observation


class Driven(NamedTuple):
    """What happened. `steps` are executed actions of the policy. `observations` has the digest of each query,
    `actions_sha256` that of the executed actions as float64. `reached` has, for each part of the goal, the
    first step after which it held: 0 before any, None never.
    """

    success: bool
    steps: int
    scene_sha256: str
    observations: list[str]
    actions_sha256: str
    reached: dict[str, int | None]


# What is asked at a query: its number and the observation, with its digest. The answer is a chunk of actions.
Ask = Callable[[int, Observation, str], Array | None]


def drive(
    env: Environment, episode: int, control: Control, ask: Ask | None, scene: Callable[[str], None]
) -> Driven:
    """What happened in an episode of `env` under `control`. `scene` is told the scene's digest first.

    With `ask` None nobody is asked, and nothing is drawn. Raises: HarnessError "episode-missing",
    "actions-invalid", "simulation-unstable"; what `ask` raises.
    """
    values = env.values
    draws = ask is not None
    raw = env.begin(episode, control.fixtures, see=draws and values.wait_steps == 0)
    scene_sha256 = env.scene_sha256()
    scene(scene_sha256)
    raw = env.wait(raw, see=draws)
    observations: list[str] = []
    executed = hashlib.sha256()
    reached: dict[str, int | None] = dict.fromkeys(env.goals)
    _note(reached, env, 0)
    most = values.max_steps[env.suite]
    success, steps = False, 0
    while not success and steps < most:
        if ask is not None and steps % values.replan_steps == 0:
            seen = env.observation(raw)
            observations.append(seen.sha256())
            control.chunk(ask(len(observations) - 1, seen, observations[-1]))
        action = np.asarray(control.act(env, raw), np.float64)
        if values.clip == "unit":
            action = np.clip(action, -1, 1)
        steps += 1
        # Only what the policy is asked about is drawn: pictures take most of the time of a step.
        see = draws and steps % values.replan_steps == 0 and steps < most
        raw, success = env.step(action, see=see)
        executed.update(action.astype("<f8").tobytes())
        _note(reached, env, steps)
    if env.unstable():
        raise HarnessError(
            "simulation-unstable",
            "MuJoCo found positions or velocities that are no numbers, and began the scene anew",
            got=f"{env.suite} task {env.task} episode {episode}, {env.unstable()} times",
            need="a simulation that stays finite",
            fix="look at the policy's actions; the controller clips them, so this is most likely another"
            " version of MuJoCo: run certify",
        )
    return Driven(success, steps, scene_sha256, observations, executed.hexdigest(), reached)


def _note(reached: dict[str, int | None], env: Environment, step: int) -> None:
    for goal, holds in zip(env.goals, env.holds(), strict=True):
        if holds and reached[goal] is None:
            reached[goal] = step
