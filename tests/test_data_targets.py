"""Tests that absolute targets are noticed, and that other actions are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import describe
from harness.data.rows import Block
from harness.data.targets import Targets, findings, grippers
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import robots

ARMS = ["data.state=observation.state", "data.actions=action"]
DROID = ["data.state=[joint_position, gripper_position]"]


def recipe_of(root: Path, made: robots.Made, *sets: str) -> Recipe:
    first, second = list(made.cameras)[:2]
    cameras = [f"data.cameras.base_0_rgb={first}", f"data.cameras.left_wrist_0_rgb={second}"]
    of_set = [f"data.dataset={robots.write(root, made)}", "model.action_horizon=5"]
    return load_recipe("smoke", [*of_set, *cameras, *sets])


def said(root: Path, made: robots.Made, *sets: str) -> list[str]:
    return describe(recipe_of(root, made, *sets)).findings


def test_joint_targets_are_told_with_the_key_that_changes_it(tmp_path: Path) -> None:
    (text,) = said(tmp_path, robots.aloha(), *ARMS)
    assert "dimensions 0-5, 7-12 hold absolute targets" in text
    assert "gripper by name: 6, 13" in text
    assert "learns them as they are recorded" in text
    assert text.endswith("--set data.relative=0-5,7-12")


def test_nothing_is_told_where_the_recipe_has_them_relative(tmp_path: Path) -> None:
    assert said(tmp_path, robots.aloha(), *ARMS, "data.relative=0-5,7-12") == []


def test_those_that_the_recipe_leaves_out_are_told(tmp_path: Path) -> None:
    (text,) = said(tmp_path, robots.aloha(), *ARMS, "data.relative=0-5")
    assert "dimensions 7-12 hold absolute targets" in text
    assert "--set data.relative=0-5,7-12" in text


def test_without_names_the_gripper_is_known_by_its_place(tmp_path: Path) -> None:
    (text,) = said(tmp_path, robots.droid(positions=True), *DROID)
    assert "dimensions 0-6 hold absolute targets" in text
    assert text.endswith("--set data.relative=0-6")
    assert "gripper by its position, for want of names: 7" in text


@pytest.mark.parametrize("made", [robots.libero(), robots.droid(positions=False)])
def test_differences_and_velocities_are_left_alone(tmp_path: Path, made: robots.Made) -> None:
    assert said(tmp_path, made, *(DROID if "joint_position" in made.vectors else [])) == []


def test_a_relative_dimension_that_is_a_difference_already_is_told(tmp_path: Path) -> None:
    (text,) = said(tmp_path, robots.libero(), "data.relative=0-5")
    assert "dimensions 0-5 hold no targets" in text
    assert text.endswith("--set data.relative=null")


def test_the_packaged_sample_has_no_targets() -> None:
    assert describe(load_recipe("smoke")).findings == []


def block(state: np.ndarray, actions: np.ndarray, lengths: tuple[int, ...]) -> Block:
    from harness.data.metadata import Episode

    firsts = np.cumsum((0, *lengths[:-1]))
    episodes = [
        Episode(n, int(first), length, "a.parquet", int(first), {})
        for n, (first, length) in enumerate(zip(firsts, lengths, strict=True))
    ]
    zeros = np.zeros(len(state))
    return Block(
        episodes, state.astype(np.float32), actions.astype(np.float32), zeros, zeros.astype(np.int64)
    )


def told(state: np.ndarray, actions: np.ndarray, *sets: str, names: list[str] | None = None) -> list[str]:
    targets = Targets(len(state))
    targets.look(block(state, actions, (len(state) // 2, len(state) - len(state) // 2)))
    return findings(load_recipe("smoke", list(sets)), targets, names, actions.shape[1])


def paths(frames: int, width: int, seed: int = 0) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(scale=0.02, size=(frames, width))
    return np.cumsum(steps, axis=0) + np.linspace(-1, 1, width)


def ahead(state: np.ndarray, frames: int) -> np.ndarray:
    """The state so many frames later."""
    return state[np.minimum(np.arange(len(state)) + frames, len(state) - 1)]


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_a_robot_that_follows_late_is_noticed(lag: int) -> None:
    state = paths(2_000, 5)
    assert "dimensions 0-4" in told(state, ahead(state, lag))[0]


def test_a_few_wrong_frames_decide_nothing() -> None:
    state = paths(2_000, 5)
    actions = ahead(state, 1)
    actions[::100] = 1e6
    state[50::100] = -1e6
    assert "dimensions 0-4" in told(state, actions)[0]


def test_a_dimension_that_never_moves_is_passed_over() -> None:
    state = paths(500, 5)
    state[:, 2] = 0.7
    assert "dimensions 0-1, 3-4" in told(state, ahead(state, 1))[0]


def test_differences_of_a_slow_robot_are_no_targets() -> None:
    state = paths(2_000, 5)
    assert told(state, ahead(state, 1) - state) == []
    assert told(state, 100 * (ahead(state, 1) - state)) == []


def test_velocities_that_the_state_has_too_are_no_positions() -> None:
    state = paths(2_000, 3)
    names = ["joint_1", "joint_velocity_1", "gripper"]
    assert "dimension 0 holds" in told(state, ahead(state, 1), names=names)[0]


def test_a_short_dataset_and_one_without_a_state_say_nothing() -> None:
    state = paths(12, 4)
    assert told(state, ahead(state, 1)) == []
    assert told(np.zeros((100, 0)), paths(100, 4)) == []


@pytest.mark.parametrize(
    ("width", "places"),
    [(6, {5}), (7, {6}), (8, {7}), (12, {5, 11}), (14, {6, 13}), (16, {7, 15}), (3, set()), (29, set())],
)
def test_grippers_by_place(width: int, places: set[int]) -> None:
    assert grippers(None, width)[0] == places


@pytest.mark.parametrize("form", ["list", "nested", "mapping", "numbered"])
def test_names_are_read_in_every_form_that_lerobot_has(tmp_path: Path, form: str) -> None:
    import json

    made = robots.aloha()
    root = robots.write(tmp_path, made)
    info = json.loads((root / "meta/info.json").read_text())
    names = info["features"]["action"]["names"]
    info["features"]["action"]["names"] = {
        "list": names,
        "nested": [names],
        "mapping": {"motors": names},
        # Their order in the text means nothing.
        "numbered": dict(reversed([(name, d) for d, name in enumerate(names)])),
    }[form]
    (root / "meta/info.json").write_text(json.dumps(info))
    recipe = recipe_of(tmp_path / "other", made, *ARMS)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dataset": str(root)})})
    assert "gripper by name: 6, 13" in describe(recipe).findings[0]
