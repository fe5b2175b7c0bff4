"""Tests `harness export`: a LoRA step and the full checkpoint merged from it give the same actions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.checkpoint.locate import Located, locate, recipe_of
from harness.checkpoint.store import Store
from harness.checkpoint.weights import load_params
from harness.errors import HarnessError
from harness.model.pi05 import bind, graph_of
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe
from harness.train.state import abstract_params
from harness.train.step import observe
from harness.verbs.export import export
from tests.support.tiny import LORA, random_batch, random_params, tiny

STATS = '{"norm_stats": {}}'
# Rank and alpha of each expert: alpha / rank of 1, of more and of less, and another rank in each.
ADAPTERS = {"alpha-is-rank": ((4, 4.0), (4, 4.0)), "alpha-is-not-rank": ((4, 10.0), (2, 1.0))}


def lora(kind: str) -> Recipe:
    parts = zip(("paligemma", "action_expert"), ADAPTERS[kind], strict=True)
    return tiny(
        "train.trained=lora",
        *(f"model.{expert}.lora={{rank: {rank}, alpha: {alpha}}}" for expert, (rank, alpha) in parts),
    )


def save(directory: Path, recipe: Recipe) -> Path:
    """One step as training saves it: what is frozen in bfloat16, adapters far from zero."""
    types = abstract_params(recipe)
    params = {
        path: jnp.asarray(value * (4 if "lora" in path else 1), types[path].dtype)
        for path, value in random_params(recipe).items()
    }
    store = Store(directory, keep_every_steps=1)
    record = {"step": 6, "recipe": recipe.model_dump(mode="json")}
    store.save(
        6,
        params=params,
        train_state={"step": jnp.int32(6), "params": {}, "opt_state": ()},
        norm_stats_json=STATS,
        asset_id="sample",
        record=record,
    )
    store.close()
    return directory / "6"


def actor(recipe: Recipe, source: Path) -> Callable[[str], np.ndarray]:
    """What the checkpoint does for two samples, when the parameters whose path ends as named are zero."""
    params = load_params(source, abstract_params(recipe)).params
    batch = random_batch(recipe, batch=2)
    noise = np.random.default_rng(1).standard_normal((2, 10, 32)).astype(np.float32)
    sample = jax.jit(
        lambda params: bind(graph_of(recipe.model), params).sample_actions(observe(batch, None), noise, 3)
    )
    return lambda name: np.asarray(
        sample({path: jnp.zeros_like(x) if name and path.endswith(name) else x for path, x in params.items()})
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_and_unmerged_give_the_same_actions(kind: str, tmp_path: Path) -> None:
    recipe = lora(kind)
    step = save(tmp_path / "checkpoints", recipe)
    command = [sys.executable, "-m", "harness.cli", "export", str(step), str(tmp_path / "full"), "--json"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["merged"]) == 10
    full = recipe_of(locate(str(tmp_path / "full")), None)
    assert not any("lora" in path for path in parameter_shapes(full.model))
    act = actor(recipe, step)
    before = act("")
    np.testing.assert_allclose(actor(full, tmp_path / "full")(""), before, rtol=0, atol=1e-5)
    # Adapters that did nothing would pass as well: each kind of weight must matter by far more than the
    # tolerance.
    for name in (
        "q_einsum/lora_b",
        "kv_einsum/lora_b",
        "attn_vec_einsum/lora_b",
        "gating_einsum_lora_b",
        "linear_lora_b",
        "attn_vec_einsum_1/lora_b",
    ):
        assert np.abs(act(name) - before).max() > 1e-3, name
    assert (tmp_path / "full/assets/sample/norm_stats.json").read_text() == STATS


def test_a_merged_checkpoint_is_of_a_model_without_adapters_however_it_was_saved(tmp_path: Path) -> None:
    recipe = tiny(*LORA, "weights.source=somewhere", "train.save=trained")
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/export.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    assert recipe_of(Located(tmp_path, None, None), None).model == tiny().model


def test_bad_input_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    step = save(tmp_path / "checkpoints", lora("alpha-is-rank"))
    full = save(tmp_path / "full", tiny())
    broken = save(tmp_path / "broken", lora("alpha-is-rank"))
    (broken / "_CHECKPOINT_METADATA").unlink()
    there = tmp_path / "there"
    there.mkdir()
    out = tmp_path / "out"
    for code, arguments in {
        "export-nothing-to-merge": [full, out],
        "checkpoint-interrupted": [broken, out],
        "checkpoint-missing": [tmp_path / "nowhere", out],
        "export-exists": [step, there],
        "weights-mismatch": [step, out, "model.paligemma.lora={rank: 3, alpha: 3}"],
    }.items():
        source, destination, *sets = arguments
        with pytest.raises(HarnessError) as caught:
            export(str(source), destination, sets=sets)
        assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "checkpoints", "full", "there"]
    assert not list(there.iterdir())
