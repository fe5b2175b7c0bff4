"""Tests relative actions, states of several features, and what is refused of them before a row is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.data import space as space_module
from harness.data import stats as stats_module
from harness.data.dataset import describe, open_for
from harness.data.lerobot import open_dataset
from harness.data.loader import Loader
from harness.data.space import Space
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import robots

ARMS = (
    "data.state=observation.state",
    "data.actions=action",
    "data.cameras.base_0_rgb=observation.images.cam_high",
    "data.cameras.left_wrist_0_rgb=observation.images.cam_left_wrist",
)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return robots.write(tmp_path_factory.mktemp("aloha"), robots.aloha())


def recipe_of(root: Path, *sets: str) -> Recipe:
    return load_recipe("smoke", [f"data.dataset={root}", *ARMS, *sets])


@pytest.mark.parametrize("horizon", [1, 7, 40])
@pytest.mark.parametrize("rows", [5, 1 << 16])
def test_statistics_equal_numpy_over_relative_chunks_that_are_built(
    arms: Path, monkeypatch: pytest.MonkeyPatch, horizon: int, rows: int
) -> None:
    """Horizons within and beyond an episode, in one pass and in several."""
    monkeypatch.setattr(space_module, "_ROWS", rows)
    monkeypatch.setattr(stats_module, "BLOCK_ROWS", rows)
    recipe = recipe_of(arms, "data.relative=0-5,7-12", f"model.action_horizon={horizon}")
    found = compute(recipe, describe(recipe)).norm_stats["actions"]
    made = robots.aloha()
    mask = np.array((*Space.of(recipe.data).relative, False))
    chunks = np.concatenate(
        [
            made.chunk(i, horizon, "action") - np.where(mask, made.vectors["observation.state"][i], 0)
            for i in range(sum(robots.LENGTHS))
        ]
    ).astype(np.float32)
    wide = chunks.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.std, wide.std(axis=0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.q01, np.quantile(wide, 0.01, axis=0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.q99, np.quantile(wide, 0.99, axis=0), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(np.float32(found.min), chunks.min(axis=0))
    np.testing.assert_array_equal(np.float32(found.max), chunks.max(axis=0))


def test_dimensions_that_are_not_relative_keep_their_statistics(arms: Path) -> None:
    plain, relative = (
        compute(recipe, describe(recipe)).norm_stats
        for recipe in (recipe_of(arms), recipe_of(arms, "data.relative=0-5,7-12"))
    )
    assert relative["state"] == plain["state"]
    for name in ("mean", "std", "q01", "q99"):
        ours, theirs = getattr(relative["actions"], name), getattr(plain["actions"], name)
        assert [ours[d] for d in (6, 13)] == [theirs[d] for d in (6, 13)]
        assert all(ours[d] != theirs[d] for d in (*range(6), *range(7, 13)))


@pytest.mark.parametrize("adapt", [None, "aloha"])
@pytest.mark.parametrize("relative", [(), (True, False, True), (True,) * 6 + (False,) + (True,) * 6])
def test_recorded_is_the_inverse(adapt: str | None, relative: tuple[bool, ...]) -> None:
    random = np.random.default_rng(0)
    space = Space(adapt, relative)
    states = space.states(random.uniform(0, 1, (4, 14)).astype(np.float32))
    chunks = random.uniform(0, 1, (4, 9, 14)).astype(np.float32)
    np.testing.assert_allclose(
        space.recorded(space.actions(chunks, states), states), chunks, rtol=0, atol=1e-6
    )


def test_without_the_keys_nothing_is_touched() -> None:
    space = Space.of(load_recipe("smoke").data)
    states, chunks = np.ones((2, 8), np.float32), np.ones((2, 5, 7), np.float32)
    assert space.is_plain
    assert space.states(states) is states
    assert space.actions(chunks, states) is chunks


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("0-5,7-12", ["0-5", "7-12"]),
        ("[0-5, 7-12]", ["0-5", "7-12"]),
        ("[0, 1, 2, 4]", ["0-2", "4"]),
        ("3", ["3"]),
        ("[5, 3-4, 0]", ["0", "3-5"]),
        ("[]", None),
        ("null", None),
    ],
)
def test_every_way_to_name_dimensions_is_one_recipe(given: str, written: list[str] | None) -> None:
    recipe = load_recipe("smoke", [f"data.relative={given}"])
    assert recipe.data.relative == written
    if written is None:
        assert recipe.sha256() == load_recipe("smoke").sha256()


@pytest.mark.parametrize("given", ["5-2", "a", "1.5", "-1", "true", "0-99999", "[[1]]", "{a: 1}"])
def test_what_is_no_dimension_is_named_with_its_key(given: str) -> None:
    with pytest.raises(HarnessError) as caught:
        load_recipe("smoke", [f"data.relative={given}"])
    assert caught.value.code == "recipe-invalid"
    assert "data.relative" in caught.value.what


@pytest.mark.parametrize(
    ("sets", "code", "fix"),
    [
        (("data.state=null", "data.relative=0-5"), "state-needed", "--set data.state=observation.state"),
        (
            ("data.state=null", "model.discrete_state_input=true"),
            "state-needed",
            "--set data.state=observation.state",
        ),
        (("data.relative=0-5,13-14",), "relative-dimension-missing", "--set data.relative=0-5,13"),
        (("data.relative=14",), "relative-dimension-missing", "--set data.relative=null"),
        (("data.state=null", "data.adapt=aloha"), "adapt-other-robot", "--set data.adapt=null"),
    ],
)
def test_what_the_dataset_lacks_is_refused_before_a_row_is_read(
    arms: Path, sets: tuple[str, ...], code: str, fix: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        open_for(recipe_of(arms, *sets))
    assert caught.value.code == code
    assert fix in caught.value.fix


def test_the_prompt_cannot_have_a_state_without_statistics(arms: Path) -> None:
    recipe = recipe_of(arms, "model.discrete_state_input=true")
    dataset = describe(recipe)
    stats = compute(recipe, dataset)
    without = stats.model_copy(update={"norm_stats": {"actions": stats.norm_stats["actions"]}})
    with pytest.raises(HarnessError) as caught:
        Loader(recipe, dataset, without, batch_size=4, seed=0)
    assert caught.value.code == "state-needed"


def test_statistics_of_another_robot_are_refused(arms: Path) -> None:
    recipe = recipe_of(arms, "model.discrete_state_input=true")
    dataset = describe(recipe)
    other = compute(load_recipe("smoke"), describe(load_recipe("smoke")))
    with pytest.raises(HarnessError) as caught:
        Loader(recipe, dataset, other, batch_size=4, seed=0).batch(0)
    assert (caught.value.code, caught.value.got, caught.value.need) == ("stats-shape", "8", "14")


def test_a_state_of_several_features_stands_side_by_side(tmp_path: Path) -> None:
    made = robots.droid(positions=True)
    root = robots.write(tmp_path, made)
    data = open_dataset(root, state=["joint_position", "gripper_position"], actions="actions")
    for i in (0, 40, 51):
        want = np.concatenate([made.vectors[name][i] for name in ("joint_position", "gripper_position")])
        np.testing.assert_array_equal(data.state(i), want)
    other = open_dataset(root, state=["gripper_position", "joint_position"], actions="actions")
    assert other.state(3)[0] == made.vectors["gripper_position"][3, 0]


def test_a_missing_feature_of_several_gives_the_whole_list_as_the_fix(tmp_path: Path) -> None:
    root = robots.write(tmp_path, robots.droid(positions=True))
    sets = [
        f"data.dataset={root}",
        "data.state=[joint_positions, gripper_position]",
        "data.cameras.base_0_rgb=exterior_image_1_left",
        "data.cameras.left_wrist_0_rgb=null",
    ]
    with pytest.raises(HarnessError) as caught:
        open_for(load_recipe("smoke", sets))
    assert caught.value.fix == "--set data.state='[joint_position, gripper_position]'"


@pytest.mark.parametrize("given", ["[]", "[a, a]"])
def test_a_list_of_no_or_the_same_features_is_refused(given: str) -> None:
    with pytest.raises(HarnessError) as caught:
        load_recipe("smoke", [f"data.state={given}"])
    assert caught.value.code == "recipe-invalid"


def test_one_prompt_takes_the_place_of_the_tasks(arms: Path) -> None:
    from harness.data.tokenizer import load_tokenizer

    recipe = recipe_of(arms, "data.prompt=put the bowl on the stove")
    dataset = describe(recipe)
    batch = Loader(recipe, dataset, compute(recipe, dataset), batch_size=4, seed=0).batch(0)
    want = load_tokenizer("sample").encode("put the bowl on the stove")
    assert batch["tokens"][0][batch["token_mask"][0]].tolist() == want


def test_a_horizon_longer_than_episodes_is_told_with_its_key(arms: Path) -> None:
    recipe = recipe_of(arms, "data.relative=0-5,7-12", "model.action_horizon=20")
    (text,) = describe(recipe).findings
    assert text.startswith("2 of 3 episodes have fewer frames than model.action_horizon (20)")
    assert "--set model.action_horizon=5" in text
