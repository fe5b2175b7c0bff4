"""Runs of several processes on this machine: trainers that join each other, each with devices of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.artifacts import Candidate, Host, Levers, Machine
from harness.checkpoint.leaves import open_leaves
from harness.data.dataset import describe
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.load import to_yaml
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, write_atomic
from harness.run.steps import TREES
from harness.supervise.endings import explain
from harness.supervise.process import Attempt
from harness.supervise.signals import SUPERVISOR
from tests.support.planned import plan_of
from tests.support.tiny import tiny

# Four devices, a replica on each two of them.
BATCH, TOKENS, DEVICES, FSDP = 4, 32, 4, 2


def recipe_of(steps: int, *overrides: str) -> Recipe:
    """Compiled in half the time of `tiny`: one camera, and the vision tower and language model stay frozen.

    Each process of each start compiles it; see `harness.train.cluster.join`.
    """
    return tiny(
        f"train.steps={steps}",
        "train.save_every_steps=4",
        f"train.global_batch={BATCH}",
        "train.trained=action_expert",
        "model.image_size=28",
        "data.cameras={base_0_rgb: image, left_wrist_0_rgb: null, right_wrist_0_rgb: null}",
        *overrides,
    )


def levers(recipe: Recipe, devices: int = DEVICES, fsdp: int = FSDP) -> Levers:
    return Levers(
        platform="cpu",
        microbatch=recipe.train.global_batch // devices,
        accumulation_steps=1,
        prompt_tokens=TOKENS,
        cameras=[camera for camera, feature in recipe.data.cameras.items() if feature],
        devices=devices,
        fsdp=fsdp,
    )


CHOSEN = Candidate(levers=levers(recipe_of(1)), verdict="fits", reason="", source="compiled")


class Silent:
    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def phase(self, name: str) -> None: ...

    def step(self, line: Any, steps: int) -> None: ...


def prepared(path: Path, recipe: Recipe, **mesh: int) -> Path:
    """A run directory that is ready to be trained."""
    run = RunDir(path)
    dataset = describe(recipe)
    chosen = Candidate(levers=levers(recipe, **mesh), verdict="fits", reason="", source="compiled")
    for artifact in (plan_of(chosen, "cpu"), dataset, compute(recipe, dataset)):
        run.write(artifact)
    write_atomic(path / RECIPE, to_yaml(recipe))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(number: int, processes: int, port: int, devices: int = DEVICES) -> dict[str, str]:
    """The variables of one process. A process alone has none of a launcher, and computes products as joined
    processes do (`harness.train.cluster`), so that bits can be compared.
    """
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags += f" --xla_force_host_platform_device_count={devices // processes}"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_multi_thread_eigen=false"
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(number),
    }
    # A collective of XLA's CPU backend blocks a thread of a pool that has one a core.
    return (
        os.environ
        | {"XLA_FLAGS": flags, "NPROC": "16", "WANDB_MODE": "disabled", "JAX_PLATFORMS": "cpu"}
        | (joined if processes > 1 else {})
    )


class Members:
    """The processes of one run: of each, the module and its arguments. They are trainers, or speak like them.

    `of`: how many processes each is told that there are.
    """

    def __init__(self, commands: list[list[str]], devices: int = DEVICES, of: int | None = None) -> None:
        port, self._said, self._errors = free_port(), [], []
        self.processes = []
        for number, command in enumerate(commands):
            out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
            self._said.append(out)
            self._errors.append(err)
            environment = environment_of(number, of or len(commands), port, devices)
            # A trainer dies with this process.
            environment[SUPERVISOR] = str(os.getpid())
            self.processes.append(
                subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=out, stderr=err)
            )

    def said(self, number: int) -> list[dict[str, Any]]:
        """The events of a process so far."""
        return [json.loads(line) for line in _text(self._said[number]).splitlines()]

    def heard(self, number: int, what: str) -> bool:
        """Whether an event of a process has that name, or that text."""
        return any(what in (event["event"], event.get("text")) for event in self.said(number))

    def errors(self, number: int) -> str:
        return _text(self._errors[number])

    def wait(self, seconds: float = 600) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def ending(self, number: int, phase: str = "step") -> HarnessError:
        """What the supervisor of process `number` says about its end."""
        result = Attempt(returncode=self.processes[number].returncode, phase=phase)
        for event in self.said(number):
            result.take(json.dumps(event).encode(), Silent())
        result.last_words.extend(self.errors(number).splitlines())
        ending = explain(result, plan_of(CHOSEN, "cpu"), Machine(host=Host(), gpu_error="none"))
        assert ending is not None
        assert not ending.again, "the engine starts all of them again, or nobody"
        return ending.error

    def until(self, condition: Callable[[], bool], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for process in self.processes:
                assert process.poll() is None, [
                    (self.said(number)[-2:], self.errors(number)[-3000:])
                    for number in range(len(self.processes))
                ]
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _text(file: BinaryIO) -> str:
    """What a process has written into the file whose offset it shares."""
    return os.pread(file.fileno(), 1 << 24, 0).decode()


def stored(checkpoints: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a step, by item and path. Orbax alone would want the devices that saved it."""
    items = {item: open_leaves(checkpoints / str(step) / item) for item in TREES}
    return {f"{item}/{path}": leaf.read() for item, leaves in items.items() for path, leaf in leaves.items()}


def trainers(*runs: Path) -> Members:
    """A trainer for each of these directories, which are views of one run directory."""
    return Members([["harness.train.worker", str(run)] for run in runs])


def ended(members: Members) -> Members:
    """The processes after they have ended as planned."""
    statuses = members.wait()
    told = [(members.said(number)[-2:], members.errors(number)[-2000:]) for number in range(len(statuses))]
    assert set(statuses) == {0}, (statuses, told)
    return members
