"""Tests adapters alone, ours and PEFT's, and merging one or several back onto their base."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from harness.checkpoint.export import write_params
from harness.checkpoint.format import Location
from harness.checkpoint.item import read_item
from harness.checkpoint.locate import Located, locate
from harness.checkpoint.peft import FILE, open_peft
from harness.checkpoint.peft_config import CONFIG
from harness.checkpoint.safetensors import read_whole_header
from harness.checkpoint.weights import load_params
from harness.errors import HarnessError
from harness.predict.deliver import Wish, deliver, merged_model
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Recipe
from tests.support.exported import recipe_of_kind, seeded, write_checkpoint


def say(_: str) -> None: ...


def merged(directory: Path, recipe: Recipe) -> dict[str, np.ndarray]:
    structs = {
        path: jax.ShapeDtypeStruct(shape, np.float32)
        for path, shape in parameter_shapes(merged_model(recipe.model)).items()
    }
    return {path: np.asarray(value) for path, value in load_params(directory, structs).params.items()}


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Recipe, Path, Path]:
    """A LoRA step that changed its projections too, and its base: (recipe, step, base)."""
    base = tmp_path / "base"
    recipe = recipe_of_kind("lora", f"weights.source={base}")
    plain = {path: value for path, value in seeded(recipe).items() if "lora" not in path}
    trained = {path for path in plain if is_trained(path, recipe.model, "lora")}
    moved = {path: value + 0.02 if path in trained else value for path, value in plain.items()}
    step = write_checkpoint(tmp_path / "5", recipe)
    shutil.rmtree(step / "params")
    write_params(step / "params", ({**seeded(recipe), **moved}).items())
    write_params(base / "params", plain.items())
    return recipe, step, base


@pytest.mark.parametrize("target", ["openpi-jax", "lerobot"])
def test_adapters_alone_give_back_what_the_step_gives(
    target: str, scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, base = scene
    deliver(locate(str(step)), recipe, tmp_path / "whole", Wish("lerobot"), say)
    deliver(locate(str(step)), recipe, tmp_path / "alone", Wish(target, alone=True), say)
    wish = Wish("lerobot", adapters=(tmp_path / "alone",))
    where = Located(base, None, None)
    if target == "lerobot":
        # PEFT's folder has no statistics; the step's are the ones that LeRobot needs.
        shutil.copytree(step / "assets", base / "assets")
    deliver(where, recipe, tmp_path / "again", wish, say)
    one, two = merged(tmp_path / "whole", recipe), merged(tmp_path / "again", recipe)
    for path, value in one.items():
        np.testing.assert_allclose(two[path], value, rtol=0, atol=2e-6, err_msg=path)
    size = sum(file.stat().st_size for file in (tmp_path / "alone").rglob("*") if file.is_file())
    assert size < 0.9 * (tmp_path / "whole/model.safetensors").stat().st_size


def test_pefts_file_has_pairs_with_the_right_ranks_and_scales(
    scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, _ = scene
    deliver(locate(str(step)), recipe, tmp_path / "peft", Wish("lerobot", alone=True), say)
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    shapes = {each.name: each.shape for each in read_whole_header(tmp_path / "peft" / FILE, tmp_path).tensors}
    prefix = "base_model.model.model.paligemma_with_expert"
    layer = f"{prefix}.paligemma.model.language_model.layers.3"
    # Eight heads of rank 4 in one linear layer; the output's heads share one bottleneck.
    assert shapes[f"{layer}.self_attn.q_proj.lora_A.weight"] == (32, 64)
    assert shapes[f"{layer}.self_attn.k_proj.lora_B.weight"] == (16, 4)
    assert shapes[f"{layer}.self_attn.o_proj.lora_A.weight"] == (4, 128)
    assert shapes[f"{layer}.mlp.down_proj.lora_B.weight"] == (64, 4)
    (q,) = [key for key in config["rank_pattern"] if "language_model" in key and "q_proj" in key]
    assert config["alpha_pattern"][q] / config["rank_pattern"][q] == 10.0 / 4
    (q,) = [key for key in config["rank_pattern"] if "gemma_expert" in key and "q_proj" in key]
    assert config["alpha_pattern"][q] / config["rank_pattern"][q] == 1.0 / 2
    assert "model.action_in_proj" in config["modules_to_save"]


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "self_attn.q_proj",
        r"gemma_expert\.model\.layers\.\d+\.self_attn\.q_proj",
        "layers.[0-9]+.mlp.down_proj",
        "language_model.layers.1.self_attn.q_proj",
        "^model.paligemma_with_expert.gemma_expert.model.layers.0.mlp.up_proj",
        "^paligemma_with_expert.gemma_expert.model.layers.0.mlp.up_proj",
        "proj",
    ],
)
def test_a_pattern_of_peft_names_the_modules_that_peft_finds_by_it(
    pattern: str, scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, _ = scene
    out = tmp_path / "peft"
    deliver(locate(str(step)), recipe, out, Wish("lerobot", alone=True), say)
    config = json.loads((out / CONFIG).read_text())
    # The first pattern that names a module counts, so the second changes nothing.
    config |= {"alpha_pattern": {pattern: 77.0, "q_proj": 77.0 if pattern == "q_proj" else 5.0}}
    (out / CONFIG).write_text(json.dumps(config))
    found = open_peft(out, {})
    assert len(found.scales) > 40
    for name, scale in found.scales.items():
        module = f"model.{name.removesuffix('.weight')}"
        alpha = next(
            (
                value
                for key, value in config["alpha_pattern"].items()
                # As PEFT's `get_pattern_key` has it.
                if re.match(rf"(.*\.)?({key})$", module)
            ),
            config["lora_alpha"],
        )
        assert scale == pytest.approx(alpha / found.pairs[name]["A"].tensor.shape[0]), name


@pytest.mark.parametrize("key", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize("pattern", [".*q_proj", "(q|k)_proj", "(a+)+b", "q_proj$", ""])
def test_a_pattern_that_is_more_than_names_is_refused_and_not_passed_over(
    key: str, pattern: str, scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, _ = scene
    out = tmp_path / "peft"
    deliver(locate(str(step)), recipe, out, Wish("lerobot", alone=True), say)
    config = json.loads((out / CONFIG).read_text())
    config[key] |= {pattern: 4}
    (out / CONFIG).write_text(json.dumps(config))
    with pytest.raises(HarnessError, match="more than names") as caught:
        open_peft(out, {})
    assert caught.value.code == "checkpoint-damaged"


def test_two_sets_of_adapters_add_up(scene: tuple[Recipe, Path, Path], tmp_path: Path) -> None:
    recipe, step, base = scene
    deliver(locate(str(step)), recipe, tmp_path / "one", Wish("openpi-jax", alone=True), say)
    deliver(locate(str(step)), recipe, tmp_path / "two", Wish("lerobot", alone=True), say)
    both = (tmp_path / "one", tmp_path / "two")
    deliver(Located(base, None, None), recipe, tmp_path / "sum", Wish("openpi-jax", adapters=both), say)
    deliver(locate(str(step)), recipe, tmp_path / "whole", Wish("openpi-jax"), say)
    start, once, twice = (merged(tmp_path / name, recipe) for name in ("base", "whole", "sum"))
    changed = 0
    for path, value in start.items():
        np.testing.assert_allclose(twice[path] - value, 2 * (once[path] - value), atol=1e-5, err_msg=path)
        changed += bool(np.abs(once[path] - value).max() > 1e-3)
    assert changed > 20


def test_one_set_of_ours_is_checked_against_the_unmerged_model(
    scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, base = scene
    deliver(locate(str(step)), recipe, tmp_path / "alone", Wish("openpi-jax", alone=True), say)
    wish = Wish("openpi-pytorch", frames=1, adapters=(tmp_path / "alone",))
    made = deliver(Located(base, None, None), recipe, tmp_path / "out", wish, say)
    assert made["check"]["largest"] <= made["check"]["tolerance"]


def test_bad_adapters_are_refused_and_nothing_is_left(
    scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, base = scene
    deliver(locate(str(step)), recipe, tmp_path / "alone", Wish("openpi-jax", alone=True), say)
    deliver(locate(str(step)), recipe, tmp_path / "peft", Wish("lerobot", alone=True), say)
    other = tmp_path / "other"
    write_params(other / "params", ((path, value + 1) for path, value in merged(base, recipe).items()))
    torn = shutil.copytree(tmp_path / "peft", tmp_path / "torn")
    config = json.loads((torn / CONFIG).read_text())
    config["rank_pattern"] = dict.fromkeys(config["rank_pattern"], 7)
    (torn / CONFIG).write_text(json.dumps(config))
    full = recipe_of_kind("full")
    before = sorted(path.name for path in tmp_path.iterdir())
    for code, source, own, wish in (
        (
            "weights-base-differs",
            Located(other, None, None),
            recipe,
            Wish("lerobot", adapters=(tmp_path / "alone",)),
        ),
        ("checkpoint-damaged", Located(base, None, None), recipe, Wish("lerobot", adapters=(torn,))),
        ("adapters-needed", Located(base, None, None), recipe, Wish("lerobot", adapters=(base,))),
        ("export-no-adapters", locate(str(step)), full, Wish("lerobot", alone=True)),
        ("export-no-adapters", locate(str(step)), recipe, Wish("openpi-pytorch", alone=True)),
        (
            "check-needs-one-source",
            Located(base, None, None),
            recipe,
            Wish("lerobot", frames=1, adapters=(tmp_path / "peft",)),
        ),
    ):
        with pytest.raises(HarnessError) as caught:
            deliver(source, own, tmp_path / "out", wish, say)
        assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("way", ["merged", "alone", "added"])
def test_damaged_adapters_are_called_damaged_and_not_a_destination_that_cannot_be_written(
    way: str, scene: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    recipe, step, base = scene
    (array,) = (
        each for path, each in read_item(step / "params").arrays.items() if "/q_einsum/lora_a" in path
    )
    for chunk in array.chunks.values():
        assert isinstance(chunk, Location)
        with (step / "params" / chunk.file).open("r+b") as file:
            file.seek(chunk.offset)
            file.write(bytes(chunk.length))
    source, wish = {
        "merged": (locate(str(step)), Wish("lerobot")),
        "alone": (locate(str(step)), Wish("lerobot", alone=True)),
        "added": (Located(base, None, None), Wish("openpi-jax", adapters=(step,))),
    }[way]
    with pytest.raises(HarnessError, match="q_einsum/lora_a") as caught:
        deliver(source, recipe, tmp_path / "out", wish, say)
    assert caught.value.code == "checkpoint-damaged"
    assert not (tmp_path / "out").exists()


def test_the_verb_adds_adapters(scene: tuple[Recipe, Path, Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from harness.cli import app

    _, step, base = scene
    run = CliRunner()
    alone, out = str(tmp_path / "alone"), str(tmp_path / "out")
    done = run.invoke(app, ["export", str(step), alone, "--adapters"], catch_exceptions=False)
    assert "adapters alone" in done.stdout
    arguments = ["export", str(base), out, "--to", "lerobot", "--adapter", alone, "--json"]
    done = run.invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout[done.stdout.index("{") :])["target"] == "lerobot"
