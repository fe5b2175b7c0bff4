"""The same episodes by the harness: in the asked order, from a disturbed generator, drawing as asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from harness.simulate import controls, episode, gl, protocol
from harness.simulate.environment import Environment


def main(asked, out):
    gl.choose()
    suite, task = asked["suite"], asked["task"]
    values = {**protocol.shipped("openpi").values, f"max_steps.{suite}": asked["steps"]}
    values = protocol.check(values)
    env = Environment(suite, task, values, asked["rendering"])
    answer = {}
    for trial in asked["order"]:
        # Whatever ran before in this process must not matter.
        np.random.seed(trial + 12345)
        np.random.uniform(size=trial)

        def ask(query, _seen, _sha256, trial=trial):
            return np.random.default_rng([task, trial, query]).uniform(-1, 1, (10, 7))

        driven = episode.drive(env, trial, controls.Remote(values), ask, lambda _sha256: None)
        end = env.env.sim.get_state().flatten()
        answer[trial] = {
            "queries": driven.observations,
            "done": driven.success,
            "end": end.tobytes().hex(),
            "scene": driven.scene_sha256,
        }
    answer["drawn"] = env.pictures_drawn
    Path(out).write_text(json.dumps(answer))


main(json.loads(sys.argv[1]), sys.argv[2])
sys.stdout.flush()
os._exit(0)
