"""LeRobot's scenes and pictures (7427f31, envs/libero.py, one environment) beside the harness's own.

LeRobot's environment resets when it is first used. Each episode is seeded by 1000 and its number, reset, set
to its initial state, and waits ten steps. What is there then is compared.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from libero.libero import benchmark, get_libero_path

from harness.simulate import gl, protocol
from harness.simulate.environment import Environment

CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def start(env, raw):
    sim = env.sim
    parts = [sim.data.qpos, sim.data.qvel, sim.model.body_pos, sim.model.body_quat]
    return [part.tobytes().hex() for part in parts] + [raw[name].tobytes().hex() for name in CAMERAS]


def main(asked, out):
    gl.choose()
    from libero.libero.envs import OffScreenRenderEnv

    answer = {}
    for suite, task in asked:
        of = benchmark.get_benchmark_dict()[suite]()
        states, named = of.get_task_init_states(task), of.get_task(task)
        bddl = Path(get_libero_path("bddl_files")) / named.problem_folder / named.bddl_file
        env = OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=360, camera_widths=360)
        env.reset()
        theirs = []
        for episode in range(3):
            env.seed(1000 + episode)
            env.reset()
            raw = env.set_init_state(states[episode])
            for _ in range(10):
                raw, _, _, _ = env.step([0, 0, 0, 0, 0, 0, -1])
            theirs.append(start(env, raw))
        env.close()
        ours = Environment(suite, task, protocol.check(protocol.shipped("lerobot").values))
        same = []
        for episode in (2, 0, 1):
            raw = ours.begin(episode)
            for waited in range(10):
                raw, _ = ours.step(np.array(ours.values.dummy_action), see=waited == 9)
            same.append(start(ours.env, raw) == theirs[episode])
        ours.close()
        answer[f"{suite}/{task}"] = same
    Path(out).write_text(json.dumps(answer))


main(json.loads(sys.argv[1]), sys.argv[2])
sys.stdout.flush()
os._exit(0)
