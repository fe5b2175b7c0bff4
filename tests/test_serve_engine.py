"""Tests the engine: bytes before weights, every form of a checkpoint, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.checkpoint.locate import Located, locate, recipe_of
from harness.checkpoint.merge import open_merging
from harness.errors import HarnessError
from harness.model.quantize import Quantized, kept
from harness.predict.deliver import Wish, deliver
from harness.predict.predict import Device
from harness.recipe.sampling import deviations
from harness.recipe.schema import Recipe
from harness.serve.engine import FastEngine, compile_all, open_engine
from harness.serve.lengths import buckets_of, cameras_of
from harness.serve.program import Arrays
from harness.serve.types import Inputs
from harness.serve.weights import load
from harness.train.state import parameter_dtype
from tests.support.exported import recipe_of_kind, seeded, write_checkpoint
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint
from tests.support.serving import inputs_of, sampled
from tests.support.tiny import tiny

CPU = Device("cpu", "cpu", None, None)


def quiet(_: str) -> None: ...


def refusal(**changed: Any) -> HarnessError:
    asked: dict[str, Any] = {"on": CPU, "steps": 10, "batches": (1,), "say": quiet} | changed
    with pytest.raises(HarnessError) as raised:
        # Nothing of this checkpoint could be read.
        open_engine(Located(Path("/nowhere"), None, None), tiny("model.prompt_tokens=16"), **asked)
    return raised.value


def test_it_is_refused_before_a_weight_is_read_if_its_bytes_do_not_fit() -> None:
    small = CPU._replace(usable_bytes=1000)
    error = refusal(on=small, batches=(1, 2))
    assert (error.code, error.got) == ("does-not-fit", "1000 B usable")
    assert "for 2 rows" in str(error.need)
    assert str(error.fix).startswith("--batch 1, where 2 rows do not fit; or free the device's memory")
    assert "--device cpu" in str(refusal(on=small._replace(platform="cuda")).fix)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"steps": 0}, "sampling-steps-invalid"),
        ({"batches": ()}, "batch-invalid"),
        ({"batches": (4, 0)}, "batch-invalid"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_compiled(
    changed: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.serve.engine.compile_all", None)
    assert refusal(**changed).code == code


def test_the_largest_shape_is_compiled_first_and_each_is_said() -> None:
    said: list[str] = []
    with pytest.raises(HarnessError):
        compile_all(tiny(), 1, (1, 3), CPU._replace(usable_bytes=1), said.append)
    assert said == ["compiling 1 of 6: 3 rows, prompts of 64 tokens"]


def test_prompt_lengths_and_cameras_follow_the_recipe() -> None:
    assert buckets_of(tiny().model) == (24, 48, 64)
    assert buckets_of(tiny("model.prompt_tokens=200").model) == (24, 48, 96, 200)
    assert buckets_of(tiny("model.prompt_tokens=20").model) == (20,)
    assert cameras_of(tiny()) == ("base_0_rgb", "left_wrist_0_rgb")


def test_other_steps_than_ten_are_a_named_deviation() -> None:
    assert deviations(10) == []
    (said,) = deviations(4)
    assert said.startswith("--steps 4: 4 Euler steps instead of 10")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, FastEngine, list[str]]:
    recipe = tiny("model.prompt_tokens=16")
    step = write_checkpoint(tmp_path_factory.mktemp("run") / "5", recipe)
    said: list[str] = []
    located = Located(step, 5, None)
    return (
        recipe,
        step,
        open_engine(located, recipe, on=CPU, steps=2, batches=(2, 1), say=said.append),
        said,
    )


def test_an_opened_engine_gives_the_actions_of_its_checkpoint(
    opened: tuple[Recipe, Path, FastEngine, list[str]],
) -> None:
    recipe, step, engine, said = opened
    assert (engine.batches, engine.buckets, engine.horizon, engine.action_dim) == ((1, 2), (16,), 10, 32)
    assert said[-1] == f"loading the weights of {step}"
    assert len(engine.deviations) == 1
    for rows in engine.batches:
        given, noise = inputs_of(recipe, rows, 16)
        got = engine.sample(given, noise)
        assert (got.dtype, got.shape) == (np.float32, (rows, 10, 32))
        assert np.abs(got - sampled(recipe, step, 2, given, noise)).max() <= 1e-6 * np.abs(got).max()


def test_warming_runs_every_shape_once(opened: tuple[Recipe, Path, FastEngine, list[str]]) -> None:
    said: list[str] = []
    opened[2].warm(said.append)
    assert said == [
        "warming 1 of 2: 2 rows, prompts of 16 tokens",
        "warming 2 of 2: 1 row, prompts of 16 tokens",
    ]


def test_a_shape_that_is_not_compiled_is_refused_by_name(
    opened: tuple[Recipe, Path, FastEngine, list[str]],
) -> None:
    recipe, _, engine, _ = opened
    for rows, tokens in ((3, 16), (1, 17)):
        with pytest.raises(HarnessError) as raised:
            engine.sample(*inputs_of(recipe, rows, tokens))
        assert (raised.value.code, raised.value.need) == ("shape-not-compiled", "1 or 2 rows, 16 tokens")


def equal(one: Arrays, other: Arrays) -> bool:
    return all(
        np.array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_openpis_own_checkpoint_serves_in_bfloat16_with_its_adapters_merged(
    kind: str, tmp_path: Path
) -> None:
    step = openpi_checkpoint(kind, tmp_path) / str(STEP[kind])
    adapters = [f"model.{expert}.lora={{rank: 4, alpha: 4.0}}" for expert in ("paligemma", "action_expert")]
    recipe = tiny(
        "model.compute_dtype=bfloat16",
        "model.image_size=224",
        "model.prompt_tokens=16",
        *(["train.trained=lora", *adapters] if kind == "lora" else []),
    )
    arrays = load(step, recipe, 10)
    assert {x.dtype for x in jax.tree.leaves(arrays.expert.layers)} == {jnp.dtype(jnp.bfloat16)}
    opened = open_merging(step, recipe.model)
    path = "PaliGemma/llm/layers/mlp/linear"
    w = opened.leaves[path].read(np.dtype(np.float32))
    if kind == "lora":
        a, b = (opened.leaves[f"{path}_lora_{x}"].read(np.dtype(np.float32)) for x in "ab")
        w = (w + a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(
        np.asarray(arrays.language.layers[1].down, np.float32), w[1].astype(jnp.bfloat16).astype(np.float32)
    )


@pytest.mark.parametrize("target", ["openpi-pytorch", "lerobot", "openpi-jax"])
def test_an_exported_checkpoint_serves_the_same_weights(tmp_path: Path, target: str) -> None:
    recipe = recipe_of_kind("lora")
    # A run's frozen parameters are bfloat16 on disk.
    params = {
        path: w.astype(parameter_dtype(path, recipe)).astype(np.float32) for path, w in seeded(recipe).items()
    }
    step = write_checkpoint(tmp_path / "5", recipe, params=params)
    written = tmp_path / "exported"
    deliver(locate(str(step)), recipe, written, Wish(target), quiet)
    located = locate(str(written))
    merged = recipe_of(located, None) if target == "openpi-jax" else recipe_of_kind("full")
    got, want = load(located.path, merged, 3), load(step, recipe, 3)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-6, atol=1e-6)


def test_frozen_kernels_are_quantized_as_in_training(tmp_path: Path) -> None:
    recipe = recipe_of_kind("lora", "train.frozen=int4")
    params = {path: w * (not path.endswith("lora_b")) for path, w in seeded(recipe).items()}
    step = write_checkpoint(tmp_path / "5", recipe, params=params)
    path = "PaliGemma/llm/layers/mlp_1/linear"
    codes = kept(path, jnp.asarray(params[path]), "int4")
    assert isinstance(codes, Quantized)
    arrays = load(step, recipe, 1)
    np.testing.assert_array_equal(
        np.asarray(arrays.expert.layers[2].down), codes.on_host()[2].astype(np.float32)
    )
    assert not equal(arrays, load(step, recipe_of_kind("lora"), 1))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    recipe = tiny()
    params = seeded(recipe)
    params["action_in_proj/kernel"][0, 0] = np.nan
    step = write_checkpoint(tmp_path / "5", recipe, params=params)
    with pytest.raises(HarnessError) as raised:
        load(step, recipe, 1)
    assert raised.value.code == "weights-not-finite"


def test_inputs_are_not_changed_by_a_call(opened: tuple[Recipe, Path, FastEngine, list[str]]) -> None:
    recipe, _, engine, _ = opened
    given, noise = inputs_of(recipe, 1, 16)
    before = Inputs(
        {k: v.copy() for k, v in given.images.items()}, given.tokens.copy(), given.token_mask.copy()
    )
    first = engine.sample(given, noise)
    np.testing.assert_array_equal(first, engine.sample(before, noise))
    np.testing.assert_array_equal(given.tokens, before.tokens)
