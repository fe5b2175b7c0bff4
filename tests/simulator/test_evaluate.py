"""Tests that a checkpoint in the simulator gives the same bytes: workers, order, kill -9 and --resume.

The simulator certifies itself twice: in the process that is killed, and once for all others.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.artifacts.episodes import EPISODES
from harness.artifacts.evaluation import Evaluation
from harness.evaluate import measure
from harness.evaluate.simulator import Start
from harness.run.directory import RunDir
from harness.simulate.boot import python
from harness.verbs.evaluate import evaluate
from tests.support.evaluating import verb
from tests.test_evaluate_checkpoint import save, stats
from tests.test_evaluate_verb import ended, wait_for

# Two tasks, one with fixtures that move at each reset, one whose list of samplers grows; three queries each.
TASKS, DEPART = "spatial/4,goal/5", ["max_steps.libero_spatial=15", "max_steps.libero_goal=15"]


@pytest.fixture(scope="module", autouse=True)
def _certified_once() -> Iterator[None]:
    whole, found = measure.certified, dict[str, measure.Found]()

    def certified(start: Start, protocol: str, *more: Any) -> measure.Found:
        if protocol not in found:
            found[protocol] = whole(start, protocol, *more)
        return found[protocol]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "certified", certified)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("runs") / "robot-001", stats())


def measured(path: str | None, out: Path, **options: Any) -> Evaluation:
    """The verb in this process."""
    typed = {"suites": "spatial,goal", "tasks": TASKS, "episodes": 2, "depart": DEPART, "videos": "none"}
    if path is not None:
        typed |= {"steps": 2, "device": "cpu"}
    with pytest.raises(typer.Exit):
        evaluate(path, out=out, **(typed | options))
    found = RunDir(out).read(Evaluation)
    assert found is not None
    return found


@pytest.mark.timeout(3000)
def test_the_same_episodes_are_the_same_bytes(run: Path, tmp_path: Path) -> None:
    one, killed = tmp_path / "one", tmp_path / "killed"
    options = ["--suites", "spatial,goal", "--tasks", TASKS, "--episodes", "2", "--steps", "2"]
    options += [part for each in DEPART for part in ("--depart", each)]
    options += ["--device", "cpu", "--videos", "none", "--workers", "2", "--out", str(killed)]
    process = verb(str(run), *options, simulator=python().parents[1])
    wait_for(killed, 1, 600)
    process.kill()
    ended(process, -signal.SIGKILL)
    kept = (killed / EPISODES).read_bytes().splitlines()
    assert 1 <= len(kept) < 4
    found = measured(str(run), one, workers=1)
    # Another order: the last task first, then all that is left.
    measured(str(run), killed, workers=1, tasks="spatial/4", resume=True)
    measured(str(run), killed, workers=2, resume=True)
    whole = (one / EPISODES).read_bytes()
    assert (killed / EPISODES).read_bytes() == whole
    assert set(kept) <= set(whole.splitlines())
    assert (found.all.measured, found.all.errors) == (4, 0)
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [len(line["observations"]) for line in lines] == [3] * 4
    assert len({line["scene_sha256"] for line in lines}) == 4
    assert len({line["actions_sha256"] for line in lines}) == 4


@pytest.mark.timeout(1800)
def test_a_recorded_episode_succeeds_and_one_of_nothing_fails(tmp_path: Path) -> None:
    replayed = measured(
        None, tmp_path / "replay", policy="replay", tasks="goal/1", suites="goal", episodes=1, depart=[]
    )
    zero = measured(None, tmp_path / "zero", policy="zero", tasks="goal/1", suites="goal")
    assert (replayed.all.successes, replayed.all.measured) == (1, 1)
    assert (zero.all.successes, zero.all.measured) == (0, 2)
