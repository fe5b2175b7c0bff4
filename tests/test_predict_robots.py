"""Tests that a prediction has the state in the prompt and in the actions where the recipe says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.locate import locate, recipe_of
from harness.data.lerobot import open_dataset
from harness.data.sample import sample_dataset_path
from harness.predict.predict import Device, Question, predict
from tests.test_predict import save

CPU = Device("cpu", "cpu", None, None)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "manifest.json").write_text("{}")
    save(directory / "checkpoints", 3)
    return directory


def asked(step: Path, *sets: str, frame: int = 4) -> np.ndarray:
    located = locate(str(step))
    recipe = recipe_of(located, None, list(sets))
    found = predict(located, recipe, Question(frame=frame, sampling_steps=2), CPU, lambda _: None)
    return np.array(found.predicted)


def test_the_state_is_added_to_relative_dimensions_alone(step: Path) -> None:
    """The same weights give the same normalized chunk, so the difference is the frame's state."""
    plain, relative = asked(step), asked(step, "data.relative=0-2,5")
    state = open_dataset(sample_dataset_path()).state(4)
    want = np.where([True, True, True, False, False, True, False], state[:7], 0)
    np.testing.assert_allclose(relative - plain, np.broadcast_to(want, plain.shape), rtol=0, atol=1e-5)


def test_the_state_in_the_prompt_changes_what_is_predicted(step: Path) -> None:
    plain, told = (asked(step, f"model.discrete_state_input={value}") for value in ("false", "true"))
    assert not np.allclose(plain, told)
