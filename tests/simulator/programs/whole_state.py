"""The model and the state of the second trial, by openpi's loop and by the harness, of each task asked.

Every array of MuJoCo's model is compared, and the state before and after the wait steps, without a renderer.
MuJoCo's solver begins from the accelerations of the forward pass before, so those of the reset count too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from harness.simulate import environment, gl, protocol
from harness.simulate.environment import Environment


def model(env):
    of = env.sim.model._model
    every = ((name, getattr(of, name, None)) for name in dir(of) if not name.startswith("_"))
    return {name: value.copy() for name, value in every if isinstance(value, np.ndarray)}


def state(env, when):
    data = env.sim.data
    names = ("qpos", "qvel", "xpos", "xquat", "qacc", "qacc_warmstart", "ctrl")
    return {f"{when}{name}": np.array(getattr(data, name)) for name in names}


def trial(env):
    """The arrays of an environment whose initial state was just set."""
    found = model(env) | state(env, "")
    for _ in range(10):
        env.step([0.0] * 6 + [-1.0])
    return found | state(env, "waited ")


def main(asked, out):
    gl.choose()
    values = protocol.check(protocol.shipped("openpi").values)
    apart = {}
    for suite, task in asked:
        states = environment.task_of(suite, task).get_task_init_states(task)
        theirs = environment.make(suite, task, resolution=256, renderer=False)
        theirs.seed(7)
        theirs.reset()
        theirs.reset()
        theirs.set_init_state(states[1])
        one = trial(theirs)
        theirs.close()
        np.random.seed(99)
        ours = Environment(suite, task, values, "never")
        ours.begin(31)
        ours.begin(1)
        two = trial(ours.env)
        ours.close()
        names = [
            n
            for n in sorted(one.keys() | two.keys())
            if n not in one or n not in two or one[n].tobytes() != two[n].tobytes()
        ]
        apart[f"{suite}/{task}"] = {"compared": len(one), "differ": names}
    Path(out).write_text(json.dumps(apart))


main(json.loads(sys.argv[1]), sys.argv[2])
sys.stdout.flush()
os._exit(0)
