"""Tests names, shapes and counts of every parameter against openpi's own list."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from harness.errors import HarnessError
from harness.model.pi05 import initialize
from harness.recipe.load import load_recipe
from harness.recipe.parameters import check_who_is_trained, counts, is_trained, parameter_shapes
from harness.train.state import abstract_params, abstract_state

REFERENCE = json.loads((Path(__file__).parent / "golden" / "pi05_params.json").read_text())
PALIGEMMA_LORA = "model.paligemma.lora={rank: 16, alpha: 16.0}"


@pytest.mark.parametrize(("recipe", "key"), [("pi05_libero", "full"), ("pi05_libero_lora", "lora")])
def test_real_size_names_shapes_dtypes_and_who_is_trained(recipe: str, key: str) -> None:
    loaded, want = load_recipe(recipe), REFERENCE[key]["parameters"]
    made = jax.eval_shape(lambda key: initialize(loaded.model, key), jax.random.key(0))
    assert {path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in made.items()} == {
        p: (v["shape"], v["dtype"]) for p, v in want.items()
    }
    assert {path: is_trained(path, loaded.model, loaded.train.trained) for path in want} == {
        p: v["trained"] for p, v in want.items()
    }


@pytest.mark.parametrize("recipe", ["pi05_libero", "pi05_libero_lora", "smoke"])
def test_closed_form_is_what_the_model_makes(recipe: str) -> None:
    model = load_recipe(recipe).model
    made = jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))
    assert {path: leaf.shape for path, leaf in made.items()} == parameter_shapes(model)


@pytest.mark.parametrize(
    ("overrides", "trained", "want"),
    [
        ([], "full", (3_353_433_872, 3_353_433_872)),
        ([], "action_expert", (3_353_433_872, 430_098_464)),
        ([PALIGEMMA_LORA], "lora", (3_381_303_056, 872_771_344)),
        (
            [PALIGEMMA_LORA, "model.action_expert.lora={rank: 32, alpha: 32.0}"],
            "lora",
            (3_403_421_456, 466_957_072),
        ),
        (
            [PALIGEMMA_LORA, "model.action_expert.lora={rank: 32, alpha: 32.0}"],
            "lora_frozen_vision",
            (3_403_421_456, 52_153_376),
        ),
    ],
)
def test_counts(overrides: list[str], trained: str, want: tuple[int, int]) -> None:
    recipe = load_recipe("pi05_libero", [*overrides, f"train.trained={trained}"])
    assert counts(recipe.model, recipe.train.trained) == want


@pytest.mark.parametrize("trained", ["lora", "lora_frozen_vision"])
def test_frozen_parameters_of_the_real_size_hold_no_gradient_moment_or_average(trained: str) -> None:
    recipe = load_recipe("pi05_libero_lora", [f"train.trained={trained}", "train.ema_decay=0.999"])
    state = abstract_state(recipe)
    _, n = counts(recipe.model, recipe.train.trained)
    assert sum(leaf.size for leaf in state.trained.values()) == n  # gradients are taken of these alone
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * n
    assert state.ema is not None
    assert sum(leaf.size for leaf in state.ema.values()) == n
    assert {leaf.dtype for leaf in state.frozen.values()} == {jnp.dtype("bfloat16")}


def test_the_reports_mistake_is_refused_with_the_counts() -> None:
    recipe = load_recipe("pi05_libero", [PALIGEMMA_LORA])
    with pytest.raises(HarnessError) as caught:
        check_who_is_trained(recipe)
    assert caught.value.code == "lora-trains-everything"
    assert "3,381,303,056" in str(caught.value.got)
    assert "872,771,344" in str(caught.value.need)


def test_adapters_without_a_rule_for_them_are_refused_and_the_shipped_recipes_are_not() -> None:
    for name in ("pi05_libero", "pi05_libero_lora", "smoke"):
        check_who_is_trained(load_recipe(name))
    with pytest.raises(HarnessError, match="neither"):
        load_recipe("pi05_libero", ["train.trained=lora"])


def test_trained_parameters_are_float32_and_frozen_ones_bfloat16() -> None:
    recipe = load_recipe("pi05_libero_lora")
    for path, leaf in abstract_params(recipe).items():
        assert leaf.dtype == (jnp.float32 if is_trained(path, recipe.model, "lora") else jnp.bfloat16)
