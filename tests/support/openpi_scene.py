"""A run that a stand-in of openpi trains, and what its listener heard."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Manifest, Metrics
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.trainer_openpi import Openpi
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir
from harness.supervise.process import Limits
from harness.supervise.run import Outcome, supervise
from tests.support.openpi_standin import standin

# Not in the test's own process: a signal that is passed on would reach it.
RECIPE = [
    "train.steps=7",
    "train.save_every_steps=3",
    "train.keep_every_steps=100",
    "train.log_every_steps=1",
]


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.when: dict[str, threading.Event] = {}

    def note(self, text: str) -> None:
        self.heard.append(text)
        for mark, event in self.when.items():
            if mark in text:
                event.set()

    def say(self, text: str) -> None:
        self.note(f"say {text}")

    def warn(self, text: str) -> None:
        self.note(f"warn {text}")

    def phase(self, name: str) -> None:
        self.note(f"phase {name}")

    def step(self, line: Metrics, steps: int) -> None:
        self.note(f"step {line.step}/{steps}")


class Scene:
    """A run that is ready to be trained by a stand-in."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **plan: Any) -> None:
        self.openpi = standin(tmp_path / "openpi", **plan)
        self.run, self.listener = RunDir(tmp_path / "run"), Listener()
        shutil.copytree(_known(tmp_path), self.run.path)
        monkeypatch.setenv("HARNESS_OPENPI", str(self.openpi))
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
        self.prepare()

    def prepare(self, *overrides: str) -> None:
        chain = Chain(self.run, load_recipe("smoke", [*RECIPE, *overrides]), trains=True, trainer=Openpi())
        dataset = chain.dataset()
        chain.stats(dataset)
        self.plan = chain.plan(chain.machine(), dataset, device="cpu")
        self.machine = chain.machine()

    def train(self, *, any_commit: bool = False, restarts: int = 0, limits: Limits | None = None) -> Outcome:
        return supervise(
            self.run,
            self.plan,
            Openpi(any_commit=any_commit),
            self.listener,
            look=lambda: self.machine,
            limits=limits or Limits(),
            restarts=restarts,
        )

    def ends_with(self, *, restarts: int = 0) -> HarnessError:
        with pytest.raises(HarnessError) as caught:
            self.train(restarts=restarts)
        return caught.value

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run.metrics.read_text().splitlines()]

    @property
    def manifest(self) -> Manifest:
        found = self.run.read(Manifest)
        assert found is not None
        return found


def _known(tmp_path: Path) -> Path:
    """A run with the sample's dataset.json and norm_stats.json, made once for all tests."""
    known = tmp_path.parent / "known"
    if not known.is_dir():
        chain = Chain(RunDir(known), load_recipe("smoke", RECIPE), trainer=Openpi())
        chain.stats(chain.dataset())
    return known
