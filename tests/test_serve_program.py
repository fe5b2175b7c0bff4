"""Tests that the program that serves gives the actions of `Pi05.sample_actions`, in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.recipe.schema import CAMERAS, Recipe
from harness.serve.engine import FastEngine
from harness.serve.program import Call, act
from harness.serve.shapes import abstract_arrays, sizes_of
from harness.serve.types import Inputs
from harness.serve.weights import load
from tests.support.exported import recipe_of_kind, write_checkpoint
from tests.support.parity import TOLERANCES, Golden, inputs, parameters, recipe_for
from tests.support.serving import engine_of, inputs_of, sampled
from tests.support.tiny import random_params, tiny

NEAR = 1e-6
GOLDEN = Path(__file__).parent / "golden" / "pi05_tiny.npz"
ONE = "data.cameras={base_0_rgb: image, left_wrist_0_rgb: null, right_wrist_0_rgb: null}"
THREE = "data.cameras={base_0_rgb: image, left_wrist_0_rgb: wrist_image, right_wrist_0_rgb: image}"
STATE = "model.discrete_state_input=true"


def near(got: np.ndarray, want: np.ndarray) -> None:
    """Differences relative to the largest action, which is above 1."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= NEAR * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(
    ("kind", "overrides", "rows", "tokens", "steps"),
    [
        ("full", [], 1, 32, 10),
        ("lora", [], 1, 32, 3),
        ("lora", ["train.frozen=int8"], 2, 32, 1),
        ("full", [ONE], 1, 16, 1),
        ("full", [THREE, STATE], 3, 32, 1),
        ("full", ["train.trained=action_expert", "model.action_horizon=13"], 2, 13, 3),
        ("lora", [ONE, "train.trained=lora_frozen_vision", "model.action_horizon=50"], 1, 16, 1),
    ],
)
def test_actions_are_those_of_sample_actions(
    tmp_path: Path, kind: str, overrides: list[str], rows: int, tokens: int, steps: int
) -> None:
    recipe = recipe_of_kind(kind, *overrides)
    # Weights as small as a model's: large ones would magnify that a merged product rounds otherwise.
    step = write_checkpoint(tmp_path / "5", recipe, params=random_params(recipe))
    given, noise = inputs_of(recipe, rows, tokens)
    got = engine_of(recipe, step, steps, (rows, tokens)).sample(given, noise)
    near(got, sampled(recipe, step, steps, given, noise))


@pytest.fixture(scope="module")
def three_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, FastEngine]:
    recipe = tiny()
    step = write_checkpoint(tmp_path_factory.mktemp("step") / "5", recipe)
    return recipe, step, engine_of(recipe, step, 2, (3, 16), (3, 24))


def test_a_rows_actions_do_not_depend_on_the_other_rows(
    three_rows: tuple[Recipe, Path, FastEngine],
) -> None:
    recipe, _, engine = three_rows
    mine, noise = inputs_of(recipe, 3, 16)
    others, other_noise = inputs_of(recipe, 3, 16, seed=5)
    # The last row is padding, as a server fills a batch up: no prompt at all.
    others.token_mask[2] = False
    for each, filled in zip([*mine.images.values()], [*others.images.values()], strict=True):
        filled[1] = each[1]
    others.tokens[1], others.token_mask[1], other_noise[1] = mine.tokens[1], mine.token_mask[1], noise[1]
    first, second = engine.sample(mine, noise), engine.sample(others, other_noise)
    np.testing.assert_array_equal(first[1], second[1])
    assert np.isfinite(second).all()
    assert np.abs(first[0] - second[0]).max() > 1e-3


def test_a_longer_bucket_gives_the_same_actions(three_rows: tuple[Recipe, Path, FastEngine]) -> None:
    recipe, _, engine = three_rows
    given, noise = inputs_of(recipe, 3, 16)
    behind = ((0, 0), (0, 8))
    # What stands in the padding is not read.
    longer = Inputs(
        given.images, np.pad(given.tokens, behind, constant_values=7), np.pad(given.token_mask, behind)
    )
    near(engine.sample(longer, noise), engine.sample(given, noise))


def test_an_absent_camera_is_one_that_was_never_there(
    three_rows: tuple[Recipe, Path, FastEngine],
) -> None:
    recipe, step, engine = three_rows
    given, noise = inputs_of(recipe, 3, 16)
    for camera in list(given.images):
        alone = given._replace(images={camera: given.images[camera]})
        near(engine.sample(alone, noise), sampled(recipe, step, 2, alone, noise))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_golden_actions_of_openpis_own_code(tmp_path: Path, kind: str) -> None:
    """The golden images are no bytes, so the program gets what bytes they would be, unrounded."""
    golden = Golden(GOLDEN)
    recipe = recipe_for(golden, kind)
    params = {path: np.asarray(value, np.float32) for path, value in parameters(golden, recipe).items()}
    step = write_checkpoint(tmp_path / "5", recipe, params=params)
    batch = inputs(golden)
    seen = batch.observation
    call = Call(
        jnp.stack([(seen.images[camera] + 1) * 127.5 for camera in CAMERAS], axis=1),
        jnp.stack([seen.image_masks[camera] for camera in CAMERAS], axis=1),
        seen.tokens,
        seen.token_mask,
        jnp.pad(batch.noise, ((0, 0), (0, 6), (0, 0))),
    )
    sizes = sizes_of(recipe.model)
    got = jax.jit(lambda arrays, call: act(arrays, sizes, call))(load(step, recipe, 10), call)
    stored = np.load(GOLDEN)[f"{kind}/sample_actions"]
    assert np.abs(np.asarray(got)[:, :10] - stored).max() <= TOLERANCES["sample_actions"]


def test_what_is_loaded_has_the_shapes_that_were_compiled(tmp_path: Path) -> None:
    for kind, overrides in (
        ("full", ["model.compute_dtype=bfloat16"]),
        ("lora", ["train.trained=lora_frozen_vision"]),
    ):
        recipe = recipe_of_kind(kind, *overrides)
        step = write_checkpoint(tmp_path / kind, recipe)
        loaded, expected = load(step, recipe, 4), abstract_arrays(recipe, 4)
        assert jax.tree.structure(loaded) == jax.tree.structure(expected)
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), loaded, expected)
        assert all(jax.tree.leaves(same))


def test_in_bfloat16_actions_are_those_of_sample_actions_to_its_rounding(tmp_path: Path) -> None:
    recipe = tiny("model.compute_dtype=bfloat16")
    step = write_checkpoint(tmp_path / "5", recipe)
    given, noise = inputs_of(recipe, 1, 16)
    got = engine_of(recipe, step, 2, (1, 16)).sample(given, noise)
    want = sampled(recipe, step, 2, given, noise)
    assert 0 < np.abs(got - want).max() <= 5e-2 * np.abs(want).max()
