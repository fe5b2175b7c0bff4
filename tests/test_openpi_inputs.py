"""Tests that the recipes of openpi's configurations give the model what openpi's own transforms give it.

The golden file is written by `python -m benchmarks.openpi_inputs`, from openpi's code at the pinned commit.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.openpi_inputs import CASES, GOLDEN, INDEX, made
from harness.artifacts import DimensionStats, NormStats
from harness.data.batch import one_frame
from harness.data.dataset import describe
from harness.data.lerobot import open_dataset
from harness.data.loader import Loader
from harness.data.space import Space
from harness.data.stats import compute
from harness.data.transforms import unnormalize
from harness.errors import HarnessError
from harness.openpi.imported import explain
from harness.openpi.job import check_upstream_can
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.meaning import changed_keys, flat
from harness.recipe.schema import CAMERAS, Recipe
from tests.support import robots

STATISTICS = ("mean", "std", "q01", "q99")


@functools.cache
def golden(case: str) -> dict[str, Any]:
    with np.load(GOLDEN) as stored:
        return {
            key.removeprefix(f"{case}/"): stored[key] for key in stored.files if key.startswith(f"{case}/")
        }


def recipe_of(case: str, dataset: Path) -> Recipe:
    """The recipe that `import openpi` gives for the case's command, for the made recording."""
    _, name, options = CASES[case]
    found = explain([name, "--exp-name", "made", *options], None)
    assert found.recipe is not None, found.unknown
    # The sample's tokenizer stands in PaliGemma's place on both sides.
    return recipe_from(found.recipe, [f"data.dataset={dataset}", "data.tokenizer=sample"], where=case)


def stats_of(case: str) -> NormStats:
    norm_stats = {
        key: DimensionStats(**{name: golden(case)[f"stats/{key}/{name}"].tolist() for name in STATISTICS})
        for key in ("state", "actions")
    }
    return NormStats(norm_stats=norm_stats, frames=sum(robots.LENGTHS), action_horizon=1)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: robots.write(tmp_path_factory.mktemp(name), made(name))
        for name in {robot for robot, _, _ in CASES.values()}
    }


@pytest.mark.parametrize("robot", sorted({robot for robot, _, _ in CASES.values()}))
def test_the_frames_are_those_of_the_golden_file(robot: str) -> None:
    with np.load(GOLDEN) as stored:
        assert str(stored[f"{robot}/sha256"]) == made(robot).sha256


@pytest.mark.parametrize("case", CASES)
def test_the_models_inputs_are_openpis(case: str, datasets: dict[str, Path]) -> None:
    recipe = recipe_of(case, datasets[CASES[case][0]])
    data = open_dataset(Path(recipe.data.dataset), state=recipe.data.state, actions=recipe.data.actions)
    want = golden(case)
    for n, i in enumerate(INDEX):
        batch = one_frame(recipe, data, stats_of(case).norm_stats, i)
        np.testing.assert_array_equal(batch["tokens"][0], want["tokens"][n])
        np.testing.assert_array_equal(batch["token_mask"][0], want["token_mask"][n])
        np.testing.assert_allclose(batch["state"][0], want["state"][n], rtol=0, atol=1e-6)
        np.testing.assert_allclose(batch["actions"][0], want["actions"][n], rtol=1e-6, atol=1e-6)
        for camera in CAMERAS:
            assert want[f"image_mask/{camera}"][n] == (camera in batch["images"])
            if camera in batch["images"]:
                pixels = np.ascontiguousarray(batch["images"][camera][0]).tobytes()
                assert hashlib.sha256(pixels).hexdigest() == want[f"image_sha256/{camera}"][n]


@pytest.mark.parametrize("case", CASES)
def test_the_statistics_are_those_of_openpis_chunks(case: str, datasets: dict[str, Path]) -> None:
    """Exact ones to rounding; those of openpi's own running statistics as near as these can be."""
    recipe = recipe_of(case, datasets[CASES[case][0]])
    found, want = compute(recipe, describe(recipe)), golden(case)
    for key, one in found.norm_stats.items():
        for name in STATISTICS:
            got = np.array(getattr(one, name))
            np.testing.assert_allclose(got, want[f"stats/{key}/{name}"], rtol=0, atol=1e-6)
            # Upstream sums squares in float32, and its histogram has 5,000 bins over the range.
            within = want[f"running/{key}/{name}_within"] if name in ("q01", "q99") else 5e-4
            assert (np.abs(got - want[f"running/{key}/{name}"]) <= within + 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_a_prediction_comes_back_as_openpis_policy_gives_it(case: str, datasets: dict[str, Path]) -> None:
    """The normalized chunk of the golden file takes the place of the model's answer."""
    recipe = recipe_of(case, datasets[CASES[case][0]])
    data = open_dataset(Path(recipe.data.dataset), state=recipe.data.state, actions=recipe.data.actions)
    want, space = golden(case), Space.of(recipe.data)
    for n, i in enumerate(INDEX):
        chunk = unnormalize(want["actions"][n], stats_of(case).norm_stats["actions"], "quantile")
        found = space.recorded(chunk, space.states(data.state(i)))
        np.testing.assert_allclose(found, want["outputs"][n], rtol=0, atol=1e-5)
        recorded = data.action_chunk(i, recipe.model.action_horizon)[0]
        np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["aloha_pen_uncap", "libero_relative_state"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_makes_the_same_frames(case: str, workers: int, datasets: dict[str, Path]) -> None:
    """Also from a process, and padded to the dataset's longest prompt instead of the recipe's 200 tokens."""
    recipe = recipe_of(case, datasets[CASES[case][0]])
    dataset = describe(recipe)
    assert dataset.prompt_tokens < recipe.model.prompt_tokens
    data = open_dataset(Path(recipe.data.dataset), state=recipe.data.state, actions=recipe.data.actions)
    loader = Loader(recipe, dataset, stats_of(case), batch_size=4, seed=0, workers=workers)
    batches = loader.iterate(3)
    batch = next(batches)
    batches.close()
    for n, i in enumerate(batch["index"].tolist()):
        alone = one_frame(recipe, data, stats_of(case).norm_stats, i)
        length = dataset.prompt_tokens
        np.testing.assert_array_equal(batch["tokens"][n], alone["tokens"][0, :length])
        assert not alone["token_mask"][0, length:].any()
        np.testing.assert_array_equal(batch["actions"][n], alone["actions"][0])
        np.testing.assert_array_equal(batch["state"][n], alone["state"][0])


@pytest.mark.parametrize(
    ("shipped", "command"), [("pi05_aloha", "pi05_aloha_pen_uncap"), ("pi05_droid", "pi05_droid_finetune")]
)
def test_a_shipped_recipe_is_that_of_its_configuration(shipped: str, command: str) -> None:
    """But for its name, and DROID's dataset, which openpi leaves to the user as well."""
    found = explain([command, "--exp-name", "made"], None).recipe
    assert found is not None
    theirs = flat(recipe_from(found, where=command).model_dump(mode="json"))
    ours = flat(load_recipe(shipped).model_dump(mode="json"))
    others = {"name", "description"} | ({"data.dataset"} if shipped == "pi05_droid" else set())
    assert set(changed_keys(ours, theirs)) == others


@pytest.mark.parametrize(
    "change",
    [
        "data.relative=0-5",
        "data.adapt=aloha",
        "data.prompt=fold",
        "data.default_prompt=fold",
        "data.episodes.exclude=[3]",
        "model.discrete_state_input=true",
    ],
)
def test_openpis_own_trainer_is_not_started_with_what_it_would_not_do(change: str) -> None:
    """It runs as pi05_libero here, and would train without a word on other inputs."""
    check_upstream_can(load_recipe("pi05_libero"))
    with pytest.raises(HarnessError) as caught:
        check_upstream_can(load_recipe("pi05_libero", [change]))
    assert caught.value.code == "upstream-cannot"
    key = change.partition("=")[0].removesuffix(".exclude")
    assert key in caught.value.what
    assert f"--set {key}=" in caught.value.fix
