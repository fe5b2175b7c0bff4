"""Trainers that are scripts, under the supervisor, and what its listener heard."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.artifacts import Candidate, Gpu, Host, Levers, Machine, Metrics, Plan
from harness.errors import HarnessError
from harness.run.directory import RunDir
from harness.supervise.process import Limits
from harness.supervise.run import Outcome, supervise
from harness.units import GIB

CARD = Gpu(index=0, uuid="GPU-1", name="card")
WELL = Machine(gpus=[CARD], host=Host(wsl=False))
TELL = """
import json, os, signal, sys, time
from pathlib import Path
from tests.support.step_writer import put_step
run = Path(sys.argv[1])
attempts = run / "attempts"
attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
attempt = len(attempts.read_text())
def tell(event, **body): print(json.dumps({"event": event} | body), flush=True)
def step(n, step_s=0.1, data_s=0.0):
    line = dict.fromkeys(("loss", "grad_norm", "param_norm", "learning_rate", "time"), 1.0)
    tell("step", line=line | {"step": n, "step_s": step_s, "data_s": data_s}, steps=100)
def save(n): put_step(run / "checkpoints", n)
"""


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(f"say {text}")

    def warn(self, text: str) -> None:
        self.heard.append(f"warn {text}")

    def phase(self, name: str) -> None:
        self.heard.append(f"phase {name}")

    def step(self, line: Metrics, steps: int) -> None:
        self.heard.append(f"step {line.step}/{steps}")


def candidate(**changes: Any) -> Candidate:
    levers = Levers(platform="cuda", microbatch=8, prompt_tokens=48, cameras=["base_0_rgb"])
    body: dict[str, Any] = {
        "levers": levers,
        "device_bytes": 20 * GIB,
        "seconds_per_step": 0.1,
        "verdict": "fits",
        "reason": "fits",
        "source": "compiled",
    }
    return Candidate(**(body | changes))


def plan(*others: Candidate, **chosen: Any) -> Plan:
    first = candidate(**chosen)
    return Plan(
        recipe="r",
        recipe_sha256="0",
        device="card",
        device_uuid="GPU-1",
        parameters_total=1,
        parameters_trained=1,
        chosen=first,
        candidates=[first, *others],
    )


class Scripted(NamedTuple):
    """A trainer that is a script."""

    script: str

    def command(self, run: RunDir) -> list[str]:
        return [sys.executable, "-c", TELL + textwrap.dedent(self.script), str(run.path)]

    def crashed(self, *_: str) -> None: ...


def run(tmp_path: Path, script: str, **options: Any) -> tuple[Outcome, Listener]:
    listener = Listener()
    usual: dict[str, Any] = {"look": lambda: WELL, "limits": Limits(), "restarts": 2}
    made = options.pop("plan", plan())
    return supervise(RunDir(tmp_path), made, Scripted(script), listener, **(usual | options)), listener


def refused(tmp_path: Path, script: str, **options: Any) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        run(tmp_path, script, **options)
    return caught.value


def attempts(tmp_path: Path) -> int:
    return len((tmp_path / "attempts").read_text())


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
