"""Calibrations without a GPU: a card that is played, and stages that end as a test says."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.artifacts import Calibration, CalibrationStage, CardState, MeasuredPlan
from harness.artifacts.plan import Levers
from harness.calibrate.card import Target, new_calibration
from harness.calibrate.run import Way
from harness.calibrate.stages import Stage, Work
from harness.plan import cost
from harness.plan.calibrated import directory_name, root
from harness.plan.cards import CARDS
from harness.plan.devices import devices_of
from harness.run.directory import RunDir
from harness.units import GIB
from tests.support.planned import FULL, gpu, with_gpus

CARD = "NVIDIA H200"
COOL = CardState(used_bytes=0, largest_compute_bytes=0, utilization_percent=0.0, throttle=[])
# Plays a stage: it does what the name of the recipe in its request says. No harness is imported.
_STAGE = r"""
import json, os, signal, sys, time
request = json.loads(sys.stdin.read())
what, note = request["work"]["recipe"], os.environ.get("NOTE")
if note:
    open(note, "a").write(what + " " + os.environ.get("CUDA_VISIBLE_DEVICES", "-") + "\n")
def tell(**line):
    print(json.dumps(line), flush=True)
print("a library says something")
print('{"doing"')
tell(doing="compiling the step")
if what == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "hang":
    time.sleep(60)
if what == "memory":
    sys.exit("jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
if what == "raise":
    sys.exit("ValueError: the loss of step 1 is nan")
if what == "silent":
    sys.exit(0)
if what == "skip":
    tell(answer={"skipped": "this card has no 22.0 GiB for the pool"})
elif what == "refuse":
    tell(answer={"refused": "XLA did not compile the training step", "code": "compile-failed"})
elif what == "unavailable":
    tell(answer={"refused": "JAX cannot start on cuda", "code": "device-unavailable"})
elif what.startswith("plan "):
    levers = {"platform": "cuda", "microbatch": 32, "accumulation_steps": 8, "prompt_tokens": 48}
    levers["cameras"] = []
    plan = {"recipe": "pi05_libero", "levers": levers, "seconds": [float(what[5:])], "peak_bytes": 5}
    tell(answer={"plan": plan})
else:
    tell(answer={"context": {"context_bytes": 7, "used_bytes": 17, "pool_bytes": 10}})
"""


class Heard:
    """Notes what it is told."""

    def __init__(self, at_begin: Callable[[str], None] = lambda _: None) -> None:
        self.told: list[str] = []
        self.began: list[str] = []
        self.ended: list[CalibrationStage] = []
        self._at_begin = at_begin

    def begin(self, stage: Stage, number: int, of: int, left_s: float) -> None:
        assert 1 <= number <= of
        assert left_s > 0
        self.began.append(stage.name)
        self._at_begin(stage.name)

    def doing(self, text: str, left_s: float) -> None:
        assert left_s < 3600
        self.told.append(text)

    def done(self, stage: CalibrationStage) -> None:
        self.ended.append(stage)

    def say(self, text: str) -> None:
        self.told.append(text)


def target(name: str = CARD, **more: Any) -> Target:
    machine = with_gpus(gpu(name=name, capability="9.0", total=140, **more))
    machine = machine.model_copy(update={"driver_version": "580.10"})
    return Target(devices_of(machine.gpus[0], machine)[0], machine)


def way(*does: str, states: list[CardState] | None = None, limit_s: float = 20, **more: Any) -> Way:
    """Stages that do what `does` says, each under that name; `states` are the card's, the last one lasts."""
    given = list(states or [COOL])

    def look() -> CardState:
        return given.pop(0) if len(given) > 1 else given[0]

    stages = [
        Stage(f"stage {number} {what.split()[0]}", what, Work(kind="context", recipe=what), limit_s)
        for number, what in enumerate(does)
    ]
    options = {"command": (sys.executable, "-S", "-c", _STAGE), "least_s": 0.0, "looks": 1}
    return Way(look, stages, **{**options, **more})


def measured(seconds: float, microbatch: int = 32, accumulation: int = 8, **more: Any) -> MeasuredPlan:
    levers = Levers(
        platform="cuda",
        microbatch=microbatch,
        accumulation_steps=accumulation,
        prompt_tokens=48,
        cameras=["base_0_rgb", "left_wrist_0_rgb"],
    )
    return MeasuredPlan(**{"recipe": "pi05_libero", "levers": levers, "seconds": [seconds]} | more)


def calibration(*stages: CalibrationStage, of: Target | None = None, **other: Any) -> Calibration:
    made = new_calibration(of or target())
    return made.model_copy(update={"stages": list(stages)} | other)


def stage_of(name: str, plan: MeasuredPlan, **more: Any) -> CalibrationStage:
    return CalibrationStage(name=name, state="measured", plan=plan, **more)


def kept(made: Calibration) -> Path:
    """Where the calibration lies, as `harness calibrate` writes it."""
    return RunDir(root() / directory_name(made)).write(made)


HELD = CardState(used_bytes=30 * GIB)


def taking(*times: float) -> list[CalibrationStage]:
    """Measured steps, each of which took so many times what the cost model says of it."""
    stages = []
    for number, each in enumerate(times):
        plan = measured(1.0, 32, 2 + number)
        predicted = cost.seconds_per_step(FULL, plan.levers, CARDS["h200"], None)
        stages.append(stage_of(f"step {number}", measured(each * predicted, 32, 2 + number)))
    return stages


def words(view: Any) -> str:
    """What a person sees of a view, on a wide terminal."""
    console = Console(file=io.StringIO(), width=500, record=True)
    console.print(view)
    return console.export_text()
