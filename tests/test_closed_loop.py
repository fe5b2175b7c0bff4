"""The program that closes the loop, without a simulator: what is held out, the data, kills, the table."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks.closed_loop import evaluate as evaluating
from benchmarks.closed_loop import generate as generating
from benchmarks.closed_loop.dataset import write_episode, write_meta
from benchmarks.closed_loop.evaluate import BLIND, evaluate
from benchmarks.closed_loop.generate import generate, read_made
from benchmarks.closed_loop.plan import EACH, HELD_OUT, TASKS, TRAINING, takes
from benchmarks.closed_loop.table import table
from benchmarks.closed_loop.train import train
from harness.artifacts.evaluation import Evaluation, Range, Rate
from harness.cli import app
from harness.data.lerobot import open_dataset
from harness.evaluate.options import asked_of, rules_of
from harness.recipe.load import load_recipe
from harness.recipe.parameters import counts


def test_no_held_out_state_and_none_of_its_fixtures_are_recorded() -> None:
    first = list(itertools.islice(takes(), 4 * EACH * len(TASKS) * len(TRAINING)))
    assert {take.state for take in first} == {take.poses for take in first} == set(TRAINING)
    assert not set(TRAINING) & set(HELD_OUT)
    assert sorted([*TRAINING, *HELD_OUT]) == list(range(50))
    assert len(set(first)) == len(first)
    assert {(take.suite, take.task) for take in first} == set(TASKS)


def test_a_state_meets_other_fixtures_with_other_noise() -> None:
    first = [take for take in itertools.islice(takes(), EACH * len(TRAINING)) if take.state == TRAINING[0]]
    assert [take.seed for take in first] == list(range(EACH))
    assert len({take.poses for take in first}) == EACH


def episode(length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    smooth = np.linspace(0, 200, 256)[:, None, None] + np.zeros((256, 256, 3))
    return {
        "image": np.stack([np.full((256, 256, 3), 10 * i, np.uint8) for i in range(length)]),
        "wrist_image": np.stack([smooth.astype(np.uint8)] * length),
        "state": random.normal(size=(length, 8)).astype(np.float32),
        "actions": random.uniform(-1, 1, (length, 7)).astype(np.float32),
    }


def test_the_harness_reads_what_was_written_bit_for_bit_and_pictures_nearly(tmp_path: Path) -> None:
    made = [episode(5, 0), episode(7, 1)]
    prompts = ["put the bowl on the plate", "pick up the milk and place it in the basket"]
    write_episode(tmp_path, 0, 0, 0, made[0], 20)
    write_episode(tmp_path, 1, 5, 1, made[1], 20)
    write_meta(tmp_path, [5, 7], prompts, prompts, 20)
    data = open_dataset(tmp_path)
    assert (data.frames, data.fps) == (12, 20)
    for i in range(12):
        one, at = (made[0], i) if i < 5 else (made[1], i - 5)
        np.testing.assert_array_equal(data.state(i), one["state"][at])
        np.testing.assert_array_equal(data.action_chunk(i, 1)[0][0], one["actions"][at])
        for name in ("image", "wrist_image"):
            far = np.abs(data.image(i, name).astype(int) - one[name][at])
            assert far.max() <= 3
    # The picture is not turned on its way: it is darker at its top.
    wrist = data.image(0, "wrist_image")
    assert wrist[:20].mean() < wrist[-20:].mean()


class Simulated:
    """Stands for the simulator's process. Every third attempt fails; it dies at the asked number."""

    def __init__(
        self, dies_at: int | None = None, slow: Callable[[dict[str, Any]], bool] = lambda _: False
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self._dies_at, self._slow = dies_at, slow

    def ask(self, _child: object, order: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if len(self.asked) == self._dies_at:
            raise RuntimeError("the simulator's process ended with code -9")
        if self._slow(order):
            time.sleep(0.2)
        self.asked.append(order)
        number = 30 * order["seed"] + order["state"]
        answer = {"is": "episode", "success": number % 3 != 0, "steps": 4, "prompt": f"task {order['task']}"}
        return answer, episode(4, number)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*choices: Any, **named: Any) -> Simulated:
        found = Simulated(*choices, **named)

        @contextmanager
        def start() -> Iterator[None]:
            yield None

        monkeypatch.setattr(generating, "start", start)
        monkeypatch.setattr(generating, "ask", found.ask)
        return found

    return use


def test_a_killed_generation_goes_on_and_makes_the_same_data(tmp_path: Path, simulated: Any) -> None:
    simulated()
    generate(tmp_path / "whole", 6)
    for _ in range(2):
        simulated(dies_at=3)
        with pytest.raises(RuntimeError, match="ended"):
            generate(tmp_path / "killed", 6)
        # A kill may leave half a line.
        with (tmp_path / "killed" / "made.jsonl").open("a") as file:
            file.write('{"suite": "libero_sp')
    simulated()
    generate(tmp_path / "killed", 6)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    assert len(files) == 6 + 3 + 1
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


def test_several_simulators_make_the_same_data_as_one(tmp_path: Path, simulated: Any) -> None:
    simulated()
    generate(tmp_path / "one", 6)
    three = simulated(slow=lambda order: order["state"] % 3 == 0)
    generate(tmp_path / "three", 6, workers=3)
    asked = [order["state"] for order in three.asked]
    assert sorted(asked) != asked, "no attempt was overtaken by a later one"
    files = [path for path in (tmp_path / "one").rglob("*.*") if path.is_file()]
    assert len(files) == 6 + 3 + 1
    for file in files:
        other = tmp_path / "three" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == other.read_bytes(), file


def test_failures_are_counted_and_no_episode_of_them_is_kept(tmp_path: Path, simulated: Any) -> None:
    simulated()
    generate(tmp_path, 4)
    made = read_made(tmp_path / "made.jsonl")
    assert [row["success"] for row in made].count(False) > 0
    assert sum(row["success"] for row in made) == 4 == len(open_dataset(tmp_path).episodes)


def test_enough_episodes_ask_nothing(tmp_path: Path, simulated: Any) -> None:
    simulated()
    generate(tmp_path, 2)
    again = simulated()
    generate(tmp_path, 2)
    assert again.asked == []


def test_the_table_has_each_policy_and_task_that_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "evaluations"
    (out / "run").mkdir(parents=True)
    numbers: dict[str, Any] = {"errors": 0, "missing": 0, "rate": None, "interval": Range(low=0, high=1)}
    rates = [
        Rate(suite="libero_spatial", task=0, successes=9, measured=10, scenes=10, **numbers),
        Rate(suite="libero_spatial", task=1, successes=0, measured=0, scenes=0, **numbers),
    ]
    assert Evaluation.model_fields["tasks"].annotation == list[Rate]
    text = json.dumps({"tasks": [rate.model_dump() for rate in rates]})
    (out / "run" / Evaluation.FILE).write_text(text)
    rows = [
        {"suite": "libero_spatial", "task": 0, "state": state, "episode": 3, "success": state > 0, "steps": 1}
        for state in (0, 1)
    ]
    (out / BLIND).write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = table(tmp_path).splitlines()
    assert lines[2:] == [
        "| blind replay | spatial/0 | 1 of 2 | 9.5 to 90.5 % |",
        "| run | spatial/0 | 9 of 10 | 59.6 to 98.2 % |",
    ]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of the verbs that were started; none of them runs."""
    found: list[list[str]] = []

    def started(command: list[str], *, check: bool) -> None:
        assert check
        assert command[:3] == [sys.executable, "-m", "harness.cli"]
        found.append(command[3:])

    monkeypatch.setattr(subprocess, "run", started)
    return found


def taken(words: list[str]) -> dict[str, Any]:
    """What the command line makes of the arguments of a verb."""
    command: Any = typer.main.get_command(app)
    return command.get_command(None, words[0]).make_context(words[0], words[1:]).params


def test_training_begins_with_the_recorded_data_and_goes_on_with_a_run(
    tmp_path: Path, commands: list[list[str]]
) -> None:
    directory = tmp_path / "a, place"
    train(directory, "run", 100)
    (directory / "run" / "checkpoints").mkdir(parents=True)
    train(directory, "run", None)
    first, second = map(taken, commands)
    assert (first["recipe"], first["steps"], first["resume"]) == ("libero_small", 100, False)
    recipe = load_recipe("libero_small", list(first["sets"]))
    assert recipe.data.dataset == str(directory / "dataset")
    assert recipe.train.holdout is not None
    assert second["resume"]
    assert second["run"] == first["run"] == directory / "run"


def test_the_held_out_states_are_those_that_evaluate_drives(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"suite": "libero_spatial", "task": 0, "success": True}]
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(evaluating, "_blind", lambda *_: None)
    (tmp_path / "evaluations" / "zero").mkdir(parents=True)
    (tmp_path / "evaluations" / "zero" / "setting.json").write_text("{}")
    evaluate(tmp_path, "run", 500, None)
    zero, scripted, ours, turned = map(taken, commands)
    assert [each["policy"] for each in (zero, scripted, ours, turned)] == ["zero", "scripted", None, None]
    assert [each["resume"] for each in (zero, scripted, ours, turned)] == [True, False, False, False]
    assert ours["path"] == turned["path"] == str(tmp_path / "run" / "checkpoints" / "500")
    assert [list(each["depart"]) for each in (ours, turned)] == [[], ["turn=0"]]
    for each in (zero, scripted, ours, turned):
        # The first initial states of the tasks that were recorded, and no others.
        asked = asked_of("zero", each["suites"], each["tasks"], each["episodes"], rules_of("openpi", [])[0])
        assert asked.tasks == {"libero_spatial": [0]}
        assert list(range(asked.episodes)) == list(HELD_OUT)


def test_the_recipe_is_small_and_has_the_published_conventions() -> None:
    small, published = load_recipe("libero_small"), load_recipe("pi05_libero")
    total, trained = counts(small.model, small.train.trained)
    assert total == trained < 1_000_000
    assert small.weights.source is None
    for key in ("cameras", "state", "actions", "normalization"):
        assert getattr(small.data, key) == getattr(published.data, key)
    assert small.model.action_horizon == published.model.action_horizon == 10
    assert small.model.discrete_state_input is published.model.discrete_state_input is False
