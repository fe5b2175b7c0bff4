"""A process that answers as the simulator's does, in milliseconds, and goes wrong where a plan says so.

    python -m tests.support.fake_simulator PLAN.json

What an episode is follows from its key and from the actions alone, as in the simulator. The plan:
`wrong` has "SUITE/TASK/EPISODE" → "die", "hang", "error", "print", "strange"; each happens once. `always`: it
happens every time. `certify`, `versions`, `slow_s` change those.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.simulate.frames import receive, send

STEPS = 20


def scene_of(suite: str, task: int, episode: int) -> str:
    return hashlib.sha256(f"scene {suite} {task} {episode}".encode()).hexdigest()


def observation(suite: str, task: int, episode: int, number: int, done: bytes) -> dict[str, np.ndarray]:
    """What is seen at a query: it follows from what was done before."""
    seed = hashlib.sha256(f"{suite} {task} {episode} {number}".encode() + done).digest()
    random = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    return {
        "image": random.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "wrist_image": random.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "state": random.standard_normal(8),
    }


class Fake:
    """The process. `plan` says what goes wrong."""

    def __init__(self, plan: dict[str, Any], once: Path) -> None:
        self.plan, self.once = plan, once
        self.source, self.sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def serve(self) -> None:
        while (got := receive(self.source)) is not None:
            order = got[0]
            if order["do"] == "stop":
                return
            if order["do"] == "hello":
                self.hello()
            elif order["do"] == "certify":
                self.certify()
            else:
                self.drive(order)

    def hello(self) -> None:
        if "dies_at_start" in self.plan:
            sys.stderr.write("libEGL warning: no driver\n")
            sys.stderr.flush()
            os._exit(3)
        if "told_at_start" in self.plan:
            send(self.sink, {"is": "error", **self.plan["told_at_start"]})
            os._exit(2)
        versions = self.plan.get("versions", {"mujoco": "3.2.3", "robosuite": "1.4.1"})
        send(self.sink, {"is": "ready", "versions": versions, "renderer": "llvmpipe"})

    def certify(self) -> None:
        good = {"name": "versions", "ok": True, "got": "3.2.3", "need": "3.2.3", "fix": ""}
        send(self.sink, {"is": "certified", "findings": self.plan.get("certify", [good])})

    def wrong(self, name: str) -> str | None:
        """What goes wrong with this episode now."""
        if name in self.plan.get("always", {}):
            return str(self.plan["always"][name])
        what = self.plan.get("wrong", {}).get(name)
        if what is None:
            return None
        try:
            os.close(os.open(self.once / name.replace("/", "_"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return None
        return str(what)

    def drive(self, order: dict[str, Any]) -> None:
        suite, task, episode = order["suite"], order["task"], order["episode"]
        wrong = self.wrong(f"{suite}/{task}/{episode}")
        send(self.sink, {"is": "scene", "sha256": scene_of(suite, task, episode)})
        most = min(order["protocol"][f"max_steps.{suite}"], STEPS)
        replan = order["protocol"]["replan_steps"]
        done, seen, steps = hashlib.sha256(), [], 0
        while steps < most:
            if steps == replan and wrong is not None:
                self.go_wrong(wrong)
                if wrong == "error":
                    return
            arrays = observation(suite, task, episode, len(seen), done.digest())
            sha256 = hashlib.sha256(b"".join(each.tobytes() for each in arrays.values())).hexdigest()
            query = {
                "is": "query",
                "number": len(seen),
                "prompt": f"task {task} of {suite}",
                "sha256": sha256,
            }
            send(self.sink, query, arrays)
            seen.append(sha256)
            got = receive(self.source)
            if got is None or got[0]["do"] == "stop":
                os._exit(0)
            if got[0]["do"] == "abandon":
                send(self.sink, {"is": "abandoned"})
                return
            actions = got[1].get("actions", np.zeros((replan, 7)))
            time.sleep(self.plan.get("slow_s", 0.0))
            done.update(actions[:replan].tobytes())
            steps += replan
        outcome = self.outcome(order["policy"], done.digest())
        send(
            self.sink,
            {
                "is": "episode",
                "outcome": outcome,
                "initial_state": episode,
                "steps": steps,
                "scene_sha256": scene_of(suite, task, episode),
                "observations": seen,
                "actions_sha256": done.hexdigest(),
                "reached": {"on bowl plate": steps if outcome == "success" else None},
            },
        )

    def outcome(self, policy: str, done: bytes) -> str:
        if policy in ("zero", "replay"):
            return "success" if policy == "replay" else "failure"
        return "success" if done[0] < 256 * self.plan.get("rate", 0.5) else "failure"

    def go_wrong(self, wrong: str) -> None:
        if wrong == "die":
            sys.stderr.write("Fatal Python error: Segmentation fault\n")
            sys.stderr.flush()
            os._exit(139)
        if wrong == "hang":
            time.sleep(1000)
        if wrong == "error":
            error = {"code": "simulation-unstable", "what": "MuJoCo began anew", "fix": "look at the actions"}
            send(self.sink, {"is": "error", **error})
        if wrong == "print":
            self.sink.write(b"a library prints into the pipe\n")
            self.sink.flush()
        if wrong == "strange":
            send(self.sink, {"is": "weather", "nice": True})


if __name__ == "__main__":
    file = Path(sys.argv[1])
    Fake(json.loads(file.read_text()), file.parent).serve()
