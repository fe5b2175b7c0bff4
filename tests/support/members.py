"""Runs of several processes on this machine: trainers that join each other, each with devices of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.artifacts import Candidate, Levers
from harness.data.dataset import describe
from harness.data.stats import compute
from harness.recipe.load import to_yaml
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, write_atomic
from tests.support.planned import plan_of
from tests.support.tiny import tiny

# Four devices, a replica on each two of them.
BATCH, TOKENS, DEVICES, FSDP = 4, 32, 4, 2


def recipe_of(steps: int, *overrides: str) -> Recipe:
    return tiny(
        f"train.steps={steps}",
        "train.save_every_steps=4",
        f"train.global_batch={BATCH}",
        "data.augment=true",
        *overrides,
    )


def levers(recipe: Recipe, devices: int = DEVICES, fsdp: int = FSDP) -> Levers:
    return Levers(
        platform="cpu",
        microbatch=BATCH // devices,
        accumulation_steps=1,
        prompt_tokens=TOKENS,
        cameras=[camera for camera, feature in recipe.data.cameras.items() if feature],
        devices=devices,
        fsdp=fsdp,
    )


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
    """The variables of one process. A process alone has none of a launcher."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags += f" --xla_force_host_platform_device_count={devices // processes}"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
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
    """The trainers of one run. What each says is in its `said`, once it has ended."""

    def __init__(self, runs: list[Path], devices: int = DEVICES) -> None:
        port = free_port()
        self.runs = runs
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "harness.train.worker", str(run)],
                env=environment_of(number, len(runs), port, devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, run in enumerate(runs)
        ]

    def wait(self, seconds: float = 240) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + seconds
        self.said: list[list[dict[str, Any]]] = []
        self.errors: list[str] = []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
                self.said.append([json.loads(line) for line in out.splitlines()])
                self.errors.append(err)
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes]

    def until(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for process in self.processes:
                assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)


def trained(run: Path, processes: int, devices: int = DEVICES) -> Members:
    """The trainers of a run that has ended as planned."""
    members = Members([run] * processes, devices)
    statuses = members.wait()
    assert statuses == [0] * processes, [error[-3000:] for error in members.errors] + [
        str(said[-3:]) for said in members.said
    ]
    return members
