"""openpi's evaluation loop in our own words: examples/libero/main.py at 15a9616, without its server.

The policy gives numbers that depend on task, trial and query alone. Every query's digest is kept. It uses
nothing of the harness but the digest and its own numbers' generator, numpy's default_rng, which leaves the
global one alone, as a server in another process does.
"""

from __future__ import annotations

import collections
import json
import math
import sys
from pathlib import Path

import numpy as np
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import OffScreenRenderEnv
from PIL import Image

from harness.simulate.observation import Observation

WAIT = [0.0] * 6 + [-1.0]


def chunk(task, trial, query):
    return np.random.default_rng([task, trial, query]).uniform(-1, 1, (10, 7))


def seen(raw):
    turned = np.ascontiguousarray(raw[::-1, ::-1])
    return np.asarray(Image.fromarray(turned).resize((224, 224), resample=Image.BILINEAR))


def vector(quat):
    quat = quat.copy()
    quat[3] = min(1.0, max(-1.0, quat[3]))
    den = np.sqrt(1.0 - quat[3] * quat[3])
    if math.isclose(den, 0.0):
        return np.zeros(3)
    return (quat[:3] * 2.0 * math.acos(quat[3])) / den


def main(asked, out):
    suite, task, trials, most = asked["suite"], asked["task"], asked["trials"], asked["steps"]
    tasks = benchmark.get_benchmark_dict()[suite]()
    of = tasks.get_task(task)
    states = tasks.get_task_init_states(task)
    bddl = Path(get_libero_path("bddl_files")) / of.problem_folder / of.bddl_file
    env = OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=256, camera_widths=256)
    env.seed(7)
    answer = []
    for trial in range(trials):
        env.reset()
        plan = collections.deque()
        obs = env.set_init_state(states[trial])
        digests, step, done = [], 0, False
        while step < most + 10:
            if step < 10:
                obs, _, _, _ = env.step(WAIT)
                step += 1
                continue
            pictures = [seen(obs["agentview_image"]), seen(obs["robot0_eye_in_hand_image"])]
            if not plan:
                state = np.concatenate(
                    (obs["robot0_eef_pos"], vector(obs["robot0_eef_quat"]), obs["robot0_gripper_qpos"])
                )
                plan.extend(chunk(task, trial, len(digests))[:5])
                digests.append(Observation(*pictures, state, str(of.language)).sha256())
            obs, _, done, _ = env.step(plan.popleft().tolist())
            if done:
                break
            step += 1
        end = env.sim.get_state().flatten()
        answer.append({"queries": digests, "done": bool(done), "end": end.tobytes().hex()})
    Path(out).write_text(json.dumps(answer))


main(json.loads(sys.argv[1]), sys.argv[2])
sys.stdout.flush()
__import__("os")._exit(0)
