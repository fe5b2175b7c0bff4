"""Tests the evaluation of a checkpoint that is served here: what is checked first, and what happens to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from harness.artifacts import DimensionStats, NormStats, Serving
from harness.artifacts.episodes import EPISODES
from harness.artifacts.setting import Setting
from harness.checkpoint.locate import locate, recipe_of
from harness.checkpoint.store import Store
from harness.errors import HarnessError
from harness.evaluate.source import Checkpoint, of_checkpoint
from harness.predict.deliver import facts_of
from harness.report.page import render
from harness.run.directory import RunDir
from harness.run.status import read_status
from tests.support.evaluating import simulator, verb
from tests.support.report_run import Page
from tests.support.tiny import random_params, tiny
from tests.test_evaluate_verb import ended, wait_for

GOAL = ("--suites", "goal", "--tasks", "0-1", "--episodes", "2", "--steps", "2", "--device", "cpu")


def stats(state: int = 8, actions: int = 7, widest: float = 0.9) -> dict[str, Any]:
    return {
        key: {"mean": [0.0] * width, "std": [0.4] * width, "q01": [-widest] * width, "q99": [widest] * width}
        for key, width in (("state", state), ("actions", actions))
    }


def save(directory: Path, norm_stats: dict[str, Any], *, nan: bool = False) -> Path:
    """A run with one step of random weights."""
    recipe = tiny()
    params = {path: jnp.asarray(value) for path, value in random_params(recipe).items()}
    if nan:
        params = {path: value * np.nan for path, value in params.items()}
    store = Store(directory / "checkpoints", keep_every_steps=1)
    store.save(
        4,
        params=params,
        train_state={"step": jnp.int32(4), "params": {}, "opt_state": ()},
        norm_stats_json=json.dumps({"norm_stats": norm_stats}),
        asset_id=recipe.data.asset_id,
        record={"step": 4, "recipe": recipe.model_dump(mode="json")},
    )
    store.close()
    (directory / "manifest.json").write_text("{}")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("runs") / "robot-001", stats())


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Path]:
    return simulator(tmp_path / "simulator")


def lines(out: Path) -> bytes:
    return (out / EPISODES).read_bytes()


def test_a_served_checkpoint_is_measured_and_its_result_is_told_everywhere(
    run: Path, tmp_path: Path, fake: Path
) -> None:
    own = shutil.copytree(run, tmp_path / "robot-001")
    options = (str(own), *GOAL, "--workers", "2")
    _, said = ended(verb(*options, simulator=fake), 0)
    assert "loading the weights" in said
    out = own / "evaluations" / "step4-2steps-openpi-goal-tasks0.1-2"
    setting = RunDir(out).read(Setting)
    assert setting is not None
    policy = setting.evaluated
    assert (policy.kind, policy.name, policy.step) == ("checkpoint", "robot-001 step 4", 4)
    assert (policy.noise_seed, policy.batch, policy.sampling_steps) == (0, 1, 2)
    assert policy.recipe_sha256 == tiny().sha256()
    assert policy.statistics is not None
    assert setting.deviations == [
        "policy: --steps 2: 2 Euler steps instead of 10; what it costs in success is not known"
    ]
    served = RunDir(out).read(Serving)
    assert served is not None
    assert served.answered == 1 + 4 * 4
    assert not (own / "serving.json").exists()

    ended(verb(str(own), *GOAL, "--workers", "1", "--out", str(tmp_path / "b"), simulator=fake), 0)
    assert lines(out) == lines(tmp_path / "b")
    # All was measured: it is judged again, and nothing is loaded. Other steps are another policy.
    _, said = ended(verb(*options, "--resume", simulator=fake), 0)
    assert "every asked episode was measured before" in said
    assert "loading" not in said
    _, said = ended(verb(*options, "--steps", "3", "--out", str(out), "--resume", simulator=fake), 2)
    assert "error [evaluation-other]" in said

    told = str(facts_of(locate(str(own)))["evaluation"])
    assert told.startswith("success ")
    assert "of 4 episodes in the simulator" in told
    (own / "recipe.yaml").write_text(json.dumps(tiny().model_dump(mode="json")))
    assert "of 4 episodes in the simulator" in str(read_status(RunDir(own)).evaluation)
    page = Page(render(RunDir(own)))
    assert "In the simulator: step4-2steps-openpi-goal-tasks0.1-2" in page.text


def test_a_server_that_is_killed_ends_the_evaluation_and_a_resume_goes_on(run: Path, tmp_path: Path) -> None:
    fake = simulator(tmp_path / "simulator", slow_s=0.05)
    out = tmp_path / "out"
    options = (str(run), *GOAL, "--out", str(out))
    process = verb(*options, simulator=fake)
    wait_for(out, 1)
    os.kill(_server_of(process.pid), signal.SIGKILL)
    _, said = ended(process, 2)
    assert "error [server-ended]" in said
    assert "signal 9" in said
    assert "--resume" in said
    ended(verb(*options, "--resume", simulator=fake), 0)
    ended(verb(*options[:-1], str(tmp_path / "whole"), simulator=fake), 0)
    assert lines(out) == lines(tmp_path / "whole")


def test_no_server_outlives_a_killed_evaluation(run: Path, tmp_path: Path) -> None:
    fake = simulator(tmp_path / "simulator", slow_s=0.05)
    process = verb(str(run), *GOAL, "--out", str(tmp_path / "out"), simulator=fake)
    wait_for(tmp_path / "out", 1)
    server = _server_of(process.pid)
    process.kill()
    ended(process, -signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _server_of(pid: int) -> int:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return child
    raise AssertionError("no server")


def test_weights_that_are_not_finite_are_named_before_any_episode(tmp_path: Path, fake: Path) -> None:
    run = save(tmp_path / "robot-002", stats(), nan=True)
    _, said = ended(verb(str(run), *GOAL, simulator=fake), 2)
    assert "need: finite weights" in said
    assert not list(run.glob("evaluations/*/episodes.jsonl"))


def test_what_the_server_refuses_is_said_as_it_said_it(run: Path, tmp_path: Path, fake: Path) -> None:
    options = (str(run), *GOAL, "--out", str(tmp_path / "out"), "--set", "data.tokenizer=/none")
    _, said = ended(verb(*options, simulator=fake), 2)
    assert "error [" in said
    assert "fix:" in said
    assert "server-ended" not in said


@pytest.mark.parametrize(
    ("norm_stats", "code"),
    [
        (stats(widest=2.5), "statistics-of-another-dataset"),
        (stats(actions=6), "policy-of-another-robot"),
        (stats(actions=14), "policy-of-another-robot"),
        (stats(state=7), "policy-of-another-robot"),
    ],
    ids=["radians", "6 actions", "14 actions", "7 states"],
)
def test_statistics_of_another_robot_are_named_without_the_weights(
    tmp_path: Path, fake: Path, norm_stats: dict[str, Any], code: str
) -> None:
    run = save(tmp_path / "robot-003", norm_stats)
    _, said = ended(verb(str(run), *GOAL, simulator=fake), 2)
    assert f"error [{code}]" in said
    assert "loading" not in said
    assert not (run / "evaluations").exists()


def test_statistics_that_are_not_the_runs_are_named(run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "robot-001")
    other = {key: DimensionStats(**value) for key, value in stats(widest=0.8).items()}
    RunDir(own).write(NormStats(norm_stats=other, frames=9, action_horizon=10))
    located = locate(str(own))
    checkpoint = Checkpoint(located, recipe_of(located, None), [], 10, 1)
    with pytest.raises(HarnessError) as caught:
        of_checkpoint(checkpoint, tmp_path, 9.0, print)
    assert caught.value.code == "statistics-of-another-dataset"
    assert "q01" in str(caught.value.got)


def test_statistics_that_are_not_the_named_datasets_are_named(run: Path, tmp_path: Path, fake: Path) -> None:
    options = (str(run), *GOAL, "--dataset", "sample", "--out", str(tmp_path / "out"))
    _, said = ended(verb(*options, simulator=fake), 2)
    assert "error [statistics-of-another-dataset]" in said


def test_a_policy_without_enough_actions_needs_a_departure(run: Path, tmp_path: Path, fake: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    _, said = ended(verb(str(run), *GOAL, *out, "--depart", "replan_steps=11", simulator=fake), 2)
    assert "error [policy-horizon]" in said
    assert "loading" not in said
