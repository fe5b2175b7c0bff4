"""A process of the simulator that records episodes of the scripted policy, as data to train on.

It takes orders as frames, as the worker does: {"do": "record", "suite", "task", "state", "poses", "seed"}.
`state` is the initial state, `poses` the reset of openpi's loop after which the fixtures stand as they do
here. The answer is {"is": "episode", "success", "steps", "prompt"}, with arrays of T steps: image and
wrist_image uint8 [T, 256, 256, 3], turned as the published data are; state float32 [T, 8]; actions float32
[T, 7], which were carried out to the last bit.

{"do": "replay", "suite", "task", "state"} with an array actions [T, 7] carries them out, in the scene that
the protocol has for that state, and answers {"is": "replayed", "success", "steps"}.
"""

from __future__ import annotations

import os
from typing import NoReturn

import numpy as np

from harness.errors import HarnessError
from harness.simulate import gl, protocol, scenes
from harness.simulate.environment import Environment
from harness.simulate.frames import Array, Message, own_streams, receive, send
from harness.simulate.observation import picture, state
from harness.simulate.scripted import WIDE, OfEnvironment, generator, scripted

# More steps than the scripted policy needs, in any task that it has a way for.
MOST = 220


def record(env: Environment, start: int, poses: int, seed: int) -> tuple[Message, dict[str, Array]]:
    """An episode from the initial state `start`, and whether it succeeded.

    Raises: HarnessError "episode-missing", "scripted-has-no-way".
    """
    values = env.values
    fixtures = scenes.known(env.suite, env.task, poses, values.seed)
    raw = env.wait(env.begin(start, fixtures, see=values.wait_steps == 0), see=True)
    policy = scripted(env, generator(f"{env.suite}/{env.task}", start, seed), WIDE)
    scene = OfEnvironment(env)
    rows: dict[str, list[Array]] = {name: [] for name in ("image", "wrist_image", "state", "actions")}
    success = False
    while not success and len(rows["actions"]) < MOST:
        action = policy.act(raw, scene).astype(np.float32)
        for name, camera in (("image", values.image), ("wrist_image", values.wrist_image)):
            rows[name].append(picture(raw[camera], values.turn, values.resolution, values.resize_method))
        rows["state"].append(state(raw, values.state).astype(np.float32))
        rows["actions"].append(action)
        raw, success = env.step(action.astype(np.float64), see=True)
    answer = {"is": "episode", "success": success, "steps": len(rows["actions"]), "prompt": env.prompt}
    return answer, {name: np.stack(values) for name, values in rows.items()}


def replay(env: Environment, start: int, actions: Array) -> Message:
    """What comes of actions [T, 7] in the protocol's own scene of an initial state. Nothing is drawn.

    Raises: HarnessError "episode-missing".
    """
    env.wait(env.begin(start), see=False)
    success, steps = False, 0
    while not success and steps < len(actions):
        _, success = env.step(actions[steps].astype(np.float64), see=False)
        steps += 1
    return {"is": "replayed", "success": success, "steps": steps}


def main() -> NoReturn:
    """Record what is asked, until there is no more order."""
    source, sink = own_streams()
    gl.choose()
    values = protocol.check(protocol.shipped("openpi").values)
    env: Environment | None = None
    while (received := receive(source)) is not None:
        order, arrays = received
        try:
            if env is None or (env.suite, env.task) != (order["suite"], order["task"]):
                if env is not None:
                    env.close()
                env = Environment(order["suite"], order["task"], values)
            if order["do"] == "replay":
                send(sink, replay(env, order["state"], arrays["actions"]))
            else:
                send(sink, *record(env, order["state"], order["poses"], order["seed"]))
        except HarnessError as error:
            send(sink, {"is": "error", "code": error.code, "what": str(error)})
    # Freeing EGL at the end fails in some drivers.
    os._exit(0)
