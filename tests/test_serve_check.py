"""Tests that `harness serve --check` finds the client's path equal to predict's, and names a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import ServeCheck
from harness.checkpoint.locate import locate, recipe_of
from harness.data.dataset import open_for
from harness.predict.predict import Device
from harness.serve import inputs
from harness.serve.check import check
from harness.serve.open import Wish
from harness.serve.types import Inputs
from tests.support.lerobot_writer import write
from tests.support.plain_engine import PlainEngine, open_engine
from tests.test_cli import harness
from tests.test_predict import save

CPU = Device("cpu", "cpu", None, None)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "manifest.json").write_text("{}")
    save(directory / "checkpoints", 3)
    return directory


class Shifted(PlainEngine):
    """Answers a little off in one dimension, from one step of the chunk on."""

    def sample(self, inputs: Inputs, noise: np.ndarray, previous: Any = None) -> np.ndarray:
        found = super().sample(inputs, noise, previous).copy()
        found[:, 4:, 2] += 0.01
        return found


def shifted(*given: Any, **more: Any) -> PlainEngine:
    engine = open_engine(*given, **more)
    engine.__class__ = Shifted
    return engine


def checked(step: Path, *sets: str, engine: Any = open_engine, count: int = 3) -> ServeCheck:
    located = locate(str(step))
    recipe = recipe_of(located, None, list(sets))
    _, data = open_for(recipe.parts()[0])
    return check(located, recipe, data, count, Wish(steps=2), CPU, lambda _: None, engine)


@pytest.mark.parametrize(
    "sets",
    [(), ("model.discrete_state_input=true",), ("data.relative=0-2,5",), ("data.prompt=wipe the table",)],
)
def test_the_clients_path_gives_predicts_actions(step: Path, sets: tuple[str, ...]) -> None:
    """Only rounding is left: the two programs are compiled apart."""
    found = checked(step, *sets)
    assert (found.verdict, found.first_difference) == ("equal", None)
    assert found.largest is not None
    assert found.largest < 0.02
    assert len(found.frames) == 3


def test_an_action_that_differs_is_named(step: Path) -> None:
    found = checked(step, engine=shifted)
    assert found.verdict == "differs"
    assert found.first_difference is not None
    assert found.first_difference.startswith("frame 0, step 4 of the chunk, dimension 2: ")


def test_an_input_that_differs_is_named_before_any_action(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = inputs.picture

    def other(name: str, value: Any, size: int) -> np.ndarray:
        found = true(name, value, size).copy()
        found[3, 4, 1] ^= 1
        return found

    monkeypatch.setattr(inputs, "picture", other)
    found = checked(step)
    assert found.verdict == "differs"
    assert found.largest is None
    assert "the picture of base_0_rgb is" in str(found.first_difference)
    assert "row 3, column 4, colour 1" in str(found.first_difference)


def test_the_verb_says_yes_and_refuses_another_robot(step: Path, tmp_path: Path) -> None:
    done = harness("serve", str(step), "--check", "sample", "--frames", "2", "--json", "--run", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = ServeCheck.model_validate_json(done.stdout)
    assert found.verdict == "equal"
    assert json.loads((tmp_path / "serve_check.json").read_text())["verdict"] == "equal"
    other = write(tmp_path / "other")
    refused = harness("serve", str(step), "--check", str(other), "--run", str(tmp_path))
    assert refused.returncode == 2
    assert "fix:" in refused.stderr


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--host", "0.0.0.0"], "key-needed"),
        (["--steps", "0"], "sampling-steps-invalid"),
        (["--batch", "0"], "batch-invalid"),
        (["--api-key-file", "nowhere"], "api-key-unreadable"),
        (["--check", "sample", "--frames", "0"], "frames-invalid"),
        (["--dataset", "nowhere"], "dataset-not-found"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(
    step: Path, tmp_path: Path, options: list[str], code: str
) -> None:
    done = harness("serve", str(step), *options, "--run", str(tmp_path))
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert "loading" not in done.stderr
    assert not list(tmp_path.iterdir())
