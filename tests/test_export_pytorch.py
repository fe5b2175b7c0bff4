"""Tests `harness export --to …`: files that other programs read, and what they did with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harness.checkpoint import pytorch_names, whole
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.locate import locate
from harness.checkpoint.safetensors import read_tensor, read_whole_header
from harness.checkpoint.source import why_not
from harness.checkpoint.weights import load_params, parameter_leaves
from harness.errors import HarnessError
from harness.model.pi05 import Observation, bind, graph_of
from harness.predict import agree
from harness.predict.deliver import Wish, deliver, merged_model
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import CAMERAS, Model, Recipe
from tests.support.exported import as_trained, inputs, recipe_of_kind, seeded, write_checkpoint

GOLDEN = Path(__file__).parent / "golden"
PROGRAMS: tuple[pytorch_names.Program, ...] = ("openpi-pytorch", "lerobot")


def say(_: str) -> None: ...


def exported(tmp_path: Path, kind: str, wish: Wish, *overrides: str) -> tuple[Recipe, Path]:
    recipe = recipe_of_kind(kind, *overrides)
    step = tmp_path / "5"
    if not step.exists():
        write_checkpoint(step, recipe)
    out = tmp_path / f"out-{wish.target}"
    deliver(locate(str(step)), recipe, out, wish, say)
    return recipe, out


def structs(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in parameter_shapes(model).items()}


def actions(model: Model, params: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    model = model.model_copy(update={"compute_dtype": "float32"})
    seen = Observation(
        {name: given["images"][:, i] for i, name in enumerate(CAMERAS)},
        {name: given["image_masks"][:, i] for i, name in enumerate(CAMERAS)},
        given["tokens"],
        given["token_mask"],
    )
    graph = graph_of(model)
    return np.asarray(
        jax.jit(lambda params: bind(graph, params).sample_actions(seen, given["noise"], 10))(params)
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_tensor_of_the_real_model_is_named_and_shaped_as_theirs(program: pytorch_names.Program) -> None:
    theirs = json.loads((GOLDEN / f"export_{program.replace('-', '_')}_names.json").read_text())
    ours = pytorch_names.tensor_shapes(load_recipe("pi05_libero").model, program)
    second = pytorch_names.PREFIX[program] + pytorch_names.TABLE_NAMES[1]
    assert {name: list(shape) for name, shape in ours.items()} | {second: [257_152, 2048]} == theirs


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_source_acts_as_both_programs_did_on_the_exported_file(kind: str) -> None:
    """The golden actions are theirs, by `benchmarks/other_models.py`."""
    recipe = recipe_of_kind(kind)
    ours = actions(recipe.model, seeded(recipe), inputs(recipe))
    for program in PROGRAMS:
        theirs = np.load(GOLDEN / f"export_{program.replace('-', '_')}.npz")[kind]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_model_comes_back_bit_for_bit(program: pytorch_names.Program, tmp_path: Path) -> None:
    recipe, out = exported(tmp_path, "full", Wish(program))
    loaded = load_params(out, structs(recipe.model))
    for path, value in seeded(recipe).items():
        np.testing.assert_array_equal(np.asarray(loaded.params[path]), value, err_msg=path)
    assert why_not(out, recipe) is None
    written = json.loads((out / "harness/export.json").read_text())["files"]["model.safetensors"]
    data = (out / "model.safetensors").read_bytes()
    assert (written["sha256"], written["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("seed", range(4))
def test_merged_adapters_act_as_unmerged_ones(seed: int, tmp_path: Path) -> None:
    recipe = recipe_of_kind("lora")
    model, given, params = merged_model(recipe.model), inputs(recipe), as_trained(recipe, seed)
    step = write_checkpoint(tmp_path / "5", recipe, params=params)
    deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot"), say)
    before = actions(recipe.model, params, given)
    after = actions(model, load_params(tmp_path / "out", structs(model)).params, given)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    # Adapters that did nothing would pass as well.
    plain = {path: value for path, value in params.items() if "lora" not in path}
    assert np.abs(actions(model, plain, given) - before).max() > 0.1


def test_lerobot_to_jax_and_back_is_the_same_file(tmp_path: Path) -> None:
    recipe, out = exported(tmp_path, "full", Wish("lerobot"))
    deliver(locate(str(out)), recipe, tmp_path / "jax", Wish("openpi-jax"), say)
    stats = json.loads((tmp_path / "jax/assets" / recipe.data.asset_id / "norm_stats.json").read_text())
    assert stats["norm_stats"]["actions"]["q99"] == pytest.approx([1.5 + i for i in range(7)])
    deliver(locate(str(tmp_path / "jax")), recipe, tmp_path / "again", Wish("lerobot"), say)
    for name in ("model.safetensors", "policy_preprocessor.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_bfloat16_is_the_nearest_and_the_whole_file_is_in_it(tmp_path: Path) -> None:
    recipe, out = exported(tmp_path, "full", Wish("openpi-pytorch", "bfloat16"))
    header = read_whole_header(out / "model.safetensors", out)
    assert {tensor.dtype for tensor in header.tensors} == {"BF16"}
    loaded = load_params(out, structs(recipe.model)).params
    for path, value in seeded(recipe).items():
        near = np.asarray(jax.numpy.asarray(value, "bfloat16").astype("float32"))
        np.testing.assert_array_equal(np.asarray(loaded[path]), near, err_msg=path)


def test_lerobots_files_make_the_prompt_and_the_statistics_of_the_training(tmp_path: Path) -> None:
    recipe, out = exported(tmp_path, "full", Wish("lerobot"))
    config = json.loads((out / "config.json").read_text())
    assert config["type"] == "pi05"
    assert list(config["input_features"])[-1] == "observation.state"
    assert config["output_features"]["action"]["shape"] == [7]
    assert config["normalization_mapping"]["ACTION"] == "QUANTILES"
    before, after = (
        json.loads((out / f"policy_{name}.json").read_text()) for name in ("preprocessor", "postprocessor")
    )
    steps = [step["registry_name"] for step in before["steps"]]
    # LeRobot's own step would write the state into the prompt, which these weights never saw.
    assert "smolvla_new_line_processor" in steps
    assert not any("prepare_state" in name for name in steps)
    for pipeline in (before, after):
        (file,) = [step["state_file"] for step in pipeline["steps"] if "state_file" in step]
        tensors = {tensor.name: tensor for tensor in read_whole_header(out / file, out).tensors}
        np.testing.assert_allclose(
            read_tensor(tensors["action.q01"], out / file, out), [-1.0 - i for i in range(7)]
        )
        assert tensors["observation.state.q99"].shape == (8,)
    assert recipe.model.prompt_tokens == config["tokenizer_max_length"]


@pytest.mark.parametrize("target", ["openpi-jax", "openpi-pytorch", "lerobot"])
def test_the_card_has_recipe_data_and_digests(target: str, tmp_path: Path) -> None:
    recipe, out = exported(tmp_path, "lora", Wish(target))
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ")
    assert "ab" * 32 in card
    assert f'"name": "{recipe.name}"' in card
    body = json.loads((out / "harness/export.json").read_text())
    assert all(entry["sha256"] in card for entry in body["files"].values())
    assert len(body["merged"]) == 10


def test_a_check_is_stored_and_a_wrong_file_is_not_called_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Wish("openpi-pytorch", None, 1)
    _, out = exported(tmp_path, "lora", wish, "data.dataset=sample")
    found = json.loads((out / "harness/export.json").read_text())["check"]
    assert found["frames"] == 1
    assert 0 <= found["largest"] <= found["tolerance"]
    assert found["tolerance"] >= agree.TOLERANCES["float32"]
    assert "largest difference" in (out / "README.md").read_text()

    def other(self: Leaf, dtype: Any = None) -> np.ndarray:
        return np.full(self.shape, 0.01, dtype or self.dtype)

    monkeypatch.setattr(
        "harness.checkpoint.merge.read_leaf", lambda _, leaves, path, dtype=None: other(leaves[path], dtype)
    )
    with pytest.raises(HarnessError) as caught:
        exported(tmp_path, "lora", wish._replace(target="lerobot"), "data.dataset=sample")
    assert caught.value.code == "export-check-failed"
    assert not (tmp_path / "out-lerobot").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "out-openpi-pytorch"]


def test_bad_wishes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = recipe_of_kind("full")
    located = locate(str(write_checkpoint(tmp_path / "5", recipe)))
    bare = locate(str(write_checkpoint(tmp_path / "6", recipe, asset_id="other")))
    for code, source, wish in (
        ("export-target-unknown", located, Wish("onnx")),
        ("export-dtype-unknown", located, Wish("lerobot", "float16")),
        ("export-option-unused", located, Wish("lerobot", "bfloat16", alone=True)),
        ("export-option-unused", located, Wish("lerobot", frames=1, alone=True)),
        ("export-option-unused", located, Wish("lerobot", adapters=(tmp_path / "5",), alone=True)),
        ("frames-invalid", located, Wish("lerobot", None, 0)),
        ("statistics-needed", bare, Wish("lerobot")),
    ):
        with pytest.raises(HarnessError) as caught:
            deliver(source, recipe, tmp_path / "out", wish, say)
        assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "6"]


def test_ctrl_c_and_a_full_disk_leave_nothing(tmp_path: Path) -> None:
    recipe = recipe_of_kind("full")
    located = locate(str(write_checkpoint(tmp_path / "5", recipe)))

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(located, recipe, tmp_path / "out", Wish("lerobot"), say, stop)

    def full(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(HarnessError) as caught:
        deliver(located, recipe, tmp_path / "out", Wish("openpi-jax"), say, full)
    assert caught.value.code == "disk-full"
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    assert whole.shutil.disk_usage(tmp_path).free


def test_leaves_of_pytorch_have_the_types_of_the_file(tmp_path: Path) -> None:
    recipe, out = exported(tmp_path, "full", Wish("lerobot", "bfloat16"))
    leaves = parameter_leaves(out / "model.safetensors", parameter_shapes(recipe.model))
    assert {leaf.dtype.name for leaf in leaves.values()} == {"bfloat16"}
