"""What drawing only before a query saves: steps and whole episodes, drawn on demand and always, in turn.

    $HARNESS_SIMULATOR/bin/python benchmarks/simulate_rendering.py [--turns 2] [--steps 60]

Each turn drives the same recorded episode both ways, each in a new environment, and then steps of one
environment in blocks. Every observation is compared. The last line is JSON with the ratios: of the medians,
always over on demand. About a minute a turn on an idle core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.simulate import controls, episode, gl, protocol
from harness.simulate.environment import Environment

HOW = ("demand", "always")
KEYS = (("libero_spatial", 0, 0), ("libero_object", 0, 0))


def whole(key: tuple[str, int, int], values: protocol.Values, how: str) -> tuple[float, Any]:
    """Seconds of a recorded episode, from the making of its environment to its end, and what happened."""
    start = time.perf_counter()
    env = Environment(key[0], key[1], values, how)
    control = controls.control("replay", values, *key)
    driven = episode.drive(env, key[2], control, lambda *_: None, lambda _sha256: None)
    seconds = time.perf_counter() - start
    env.close()
    return seconds, driven


def stepping(env: Environment, how: str, steps: int) -> float:
    """Seconds of so many steps, of which each fifth is drawn, or every one."""
    env.rendering = how
    action = np.array(env.values.dummy_action)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        env.step(action, see=step % env.values.replan_steps == 0)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    gl.choose()
    values = protocol.check(protocol.shipped("openpi").values)
    answer: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], **gl.renderer()}
    for key in KEYS:
        episodes: dict[str, list[float]] = {how: [] for how in HOW}
        steps: dict[str, list[float]] = {how: [] for how in HOW}
        for turn in range(given.turns):
            happened = []
            for how in HOW if turn % 2 == 0 else HOW[::-1]:
                seconds, driven = whole(key, values, how)
                episodes[how].append(round(seconds, 2))
                happened.append(driven)
            assert happened[0] == happened[1], "drawing changed what happened"
            env = Environment(key[0], key[1], values)
            env.begin(key[2])
            for how in (*HOW, *HOW[::-1]):
                steps[how].append(round(stepping(env, how, given.steps), 2))
            env.close()
        ratio = {
            name: round(statistics.median(of["always"]) / statistics.median(of["demand"]), 2)
            for name, of in (("episode", episodes), ("step", steps))
        }
        answer["/".join(map(str, key))] = {"ratio": ratio, "episodes_s": episodes, "steps_s": steps}
        sys.stderr.write(f"{key}: {ratio}\n")
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
