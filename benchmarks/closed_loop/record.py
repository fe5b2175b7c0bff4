"""Runs in the simulator's Python: records attempts of the scripted policy. Started by `generate`.

    python -m benchmarks.closed_loop.record < orders > episodes        (frames of harness.simulate.frames)

An order is {"do": "record", suite, task, state, poses, seed, fixtures}. The answer is {"is": "episode",
success, steps, prompt} with arrays image and wrist_image uint8 [T, 256, 256, 3], turned by 180 degrees as the
published data are, state float32 [T, 8], actions float32 [T, 7]. The actions are those that were carried out.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import numpy as np

from harness.simulate.frames import receive, send
from harness.simulate.scripted import Noise, Scripted, generator, job_of

CAMERAS = {"image": "agentview_image", "wrist_image": "robot0_eye_in_hand_image"}
SIDE = 256
WAIT, MOST = [0.0] * 6 + [-1.0], 220
# More than the scripted policy needs: the model sees the gripper off its way, and the way back.
NOISE = Noise(action=0.08, stray=0.03, yaw=0.1)


class Recorder:
    """One environment at a time, made anew for another task."""

    def __init__(self) -> None:
        self._key: tuple[str, int] | None = None
        self._env: Any = None
        self._seeing = False

    def record(self, order: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        suite, task = order["suite"], order["task"]
        if self._key != (suite, task):
            self._open(suite, task)
        env = self._env
        env.seed(7)
        env.reset()
        self._gate()
        for name, pose in order["fixtures"].items():
            body = env.env.obj_body_id[name]
            env.sim.model.body_pos[body], env.sim.model.body_quat[body] = pose[:3], pose[3:]
        observation = env.set_init_state(self._states[order["state"]])
        for i in range(10):
            self._seeing = i == 9
            observation, *_ = env.step(WAIT)
        job = job_of(suite, self._language, tuple(env.obj_of_interest), self)
        if job is None:
            raise ValueError(f"the scripted policy has no way for {suite} {task}")
        random = generator(f"{suite}/{task}", order["state"], order["seed"])
        policy = Scripted(job, self, random, NOISE)
        rows: dict[str, list[np.ndarray]] = {name: [] for name in (*CAMERAS, "state", "actions")}
        success = False
        while not success and len(rows["actions"]) < MOST:
            # What is carried out is what is recorded, to the last bit.
            action = policy.act(observation, self).astype(np.float32)
            for name, key in CAMERAS.items():
                rows[name].append(observation[key][::-1, ::-1].copy())
            rows["state"].append(state_of(observation))
            rows["actions"].append(action)
            observation, _, success, _ = env.step(action.astype(np.float64))
        arrays = {name: np.stack(values) for name, values in rows.items()}
        answer = {"is": "episode", "success": bool(success), "steps": len(rows["actions"])}
        return {**answer, "prompt": self._language}, arrays

    def position(self, name: str) -> np.ndarray:
        env = self._env
        if name in env.env.obj_body_id:
            return np.array(env.sim.data.body_xpos[env.env.obj_body_id[name]])
        return np.array(env.sim.data.get_site_xpos(name))

    def _open(self, suite: str, task: int) -> None:
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        if self._env is not None:
            self._env.close()
        tasks = benchmark.get_benchmark(suite)()
        found = tasks.get_task(task)
        file = os.path.join(get_libero_path("bddl_files"), found.problem_folder, found.bddl_file)
        self._env = OffScreenRenderEnv(bddl_file_name=file, camera_heights=SIDE, camera_widths=SIDE)
        self._states, self._language = tasks.get_task_init_states(task), found.language
        self._key = (suite, task)

    def _gate(self) -> None:
        """Lets the cameras draw only while `_seeing`; what is drawn changes nothing of the physics.

        An observable that is switched off loses its clock, and would be sampled at another substep.
        """
        self._seeing = False
        for key in CAMERAS.values():
            observable = self._env.env._observables[key]
            observable._sensor = _gated(observable._sensor, lambda: self._seeing)


def _gated(sensor: Any, seeing: Any) -> Any:
    @functools.wraps(sensor)
    def gated(cache: Any) -> np.ndarray:
        return sensor(cache) if seeing() else np.zeros((SIDE, SIDE, 3), np.uint8)

    return gated


def state_of(observation: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [8]: place of the hand, its axis times angle, the two fingers. As openpi's client makes it."""
    x, y, z, w = observation["robot0_eef_quat"]
    w = min(1.0, max(-1.0, float(w)))
    sine = np.sqrt(1.0 - w * w)
    axis = np.zeros(3) if sine < 1e-8 else np.array([x, y, z]) * 2.0 * np.arccos(w) / sine
    parts = (observation["robot0_eef_pos"], axis, observation["robot0_gripper_qpos"])
    return np.concatenate(parts).astype(np.float32)


def main() -> None:
    # What the libraries print goes to stderr, so that stdout has frames only.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    recorder = Recorder()
    while (received := receive(sys.stdin.buffer)) is not None:
        send(out, *recorder.record(received[0]))
    # Mesa's EGL may fail in destructors at the end.
    os._exit(0)


if __name__ == "__main__":
    main()
