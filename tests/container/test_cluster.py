"""Tests a run of two containers on a network of their own, from the compose file of `harness launch`.

A process is killed, then a cable is pulled. The engine starts both again, and the run ends bit for bit as one
that nothing disturbed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from docker.models.containers import Container
from docker.models.networks import Network

from harness.artifacts.launched import Launched
from harness.recipe.load import to_yaml
from harness.run.steps import newest_step
from tests.container.engine import CPU_IMAGE, FAST, Checkout, Ended
from tests.support.members import recipe_of, stored
from tests.support.real_runs import metrics

STEPS = 24
PATIENCE_S = 600
# A peer that cannot be reached is named within a minute.
NAMED_S = 60
# Kills the trainer, not the supervisor: a container that is killed from outside is not started again.
KILL = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"harness.train.worker" in path.read_bytes().split(b"\\0"):
        os.kill(int(path.parent.name), signal.SIGKILL)
"""
pytestmark = pytest.mark.timeout(1800)


class Composed:
    """A run of two containers, host-0 and host-1."""

    def __init__(self, checkout: Checkout, root: Path, name: str) -> None:
        self._checkout, self._engine = checkout, checkout.engine
        self.name, self.run = f"{checkout.engine.session}-{name}", root / "runs" / name
        recipe, out = root / "small.yaml", root / "launch" / name
        recipe.write_text(to_yaml(recipe_of(STEPS)))
        paths = {f"HARNESS_{each.upper()}": str(root / each) for each in ("runs", "datasets", "cache")}
        command = [sys.executable, "-m", "harness.cli", "launch", "--engine=compose", "--hosts=2", "--gpus=0"]
        options = [f"--recipe={recipe}", f"--image={CPU_IMAGE}", f"--name={name}", f"--out={out}", "--json"]
        # Five starts compile the step, twice each: a program of the CPU that was read from a file has lost
        # the order of its collectives.
        options += [f"--env={name}={value}" for name, value in FAST.items()]
        self.start = Launched.model_validate_json(checkout.done(*command, *options, **paths)).start
        self._file, self._cache = out / "compose.yaml", root / "cache"

    def up(self) -> None:
        """What launch says a person should type, but for a terminal that is given back."""
        for command in self.start:
            more = f" --project-name {self.name}"
            typed = command.replace("docker compose", f"docker compose{more}")
            self._checkout.done("sh", "-c", typed + (" --detach" if "compose" in command else ""))

    def verified(self) -> Ended:
        """What `harness verify` says of the run, by one process in the same image."""
        mounts = {str(self.run.parent): {"bind": "/runs"}, str(self._cache): {"bind": "/cache"}}
        return self._engine.run(
            CPU_IMAGE,
            "/opt/harness/docker/entrypoint",
            "verify",
            f"/runs/{self.run.name}",
            volumes=mounts,
            environment=FAST,
            network_mode="none",
            user=f"{os.getuid()}:{os.getgid()}",
        )

    def down(self) -> None:
        compose = ("docker", "compose", "--project-name", self.name, "-f", str(self._file))
        self._checkout.done(*compose, "down", "--timeout", "0")

    def host(self, number: int) -> Container:
        return self._engine.client.containers.get(f"{self.name}-host-{number}-1")

    @property
    def network(self) -> Network:
        (found,) = self._engine.client.networks.list(names=[f"{self.name}_default"])
        return found

    def said(self, number: int) -> str:
        return self.host(number).logs().decode(errors="replace")

    def restarts(self) -> list[int]:
        return [int(self.host(number).attrs["RestartCount"]) for number in range(2)]

    def until(self, what: str, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            said = "\n".join(self.said(number)[-3000:] for number in range(2))
            assert time.monotonic() < deadline, f"not {what} in {seconds:.0f} s\n{said}"
            time.sleep(0.2)

    def until_saved(self, step: int) -> None:
        self.until(f"saved step {step}", lambda: (newest_step(self.run / "checkpoints", "ours") or 0) >= step)

    def until_ended(self) -> None:
        """Both have ended with 0."""

        def ended() -> bool:
            states = [self.host(number).attrs["State"] for number in range(2)]
            return all((state["Status"], state["ExitCode"]) == ("exited", 0) for state in states)

        self.until("ended with 0", ended)


@contextmanager
def started(checkout: Checkout, root: Path, name: str) -> Iterator[Composed]:
    made = Composed(checkout, root, name)
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_a_killed_process_and_a_pulled_cable_change_no_bit(checkout: Checkout, scratch: Path) -> None:
    checkout.engine.image(CPU_IMAGE)
    with started(checkout, scratch, "whole") as whole:
        whole.until_ended()
    with started(checkout, scratch, "disturbed") as run:
        run.until_saved(4)
        killed = run.host(1).exec_run(["python", "-c", KILL])
        assert killed.exit_code == 0, killed.output
        run.until("started again", lambda: min(run.restarts()) == 1)
        assert "error [peer-lost] process 1" in run.said(0)
        assert "error [killed]" in run.said(1)
        run.until_saved(12)
        before = time.monotonic()
        run.network.disconnect(run.host(1))
        run.until("named", lambda: run.said(0).count("error [peer-lost]") == 2, NAMED_S)
        print(f"the unreachable process was named after {time.monotonic() - before:.0f} s")
        run.network.connect(run.host(1), aliases=["host-1"])
        run.until_ended()
        restarts = run.restarts()
    print(f"started again {restarts} times")
    verified = run.verified()
    assert verified.code == 0, verified.said
    losses = [[line["loss"] for line in metrics(path)] for path in (whole.run, run.run)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]
    first, second = (stored(path / "checkpoints", STEPS) for path in (whole.run, run.run))
    assert first.keys() == second.keys()
    assert [path for path in first if not np.array_equal(first[path], second[path])] == []
