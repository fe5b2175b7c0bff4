"""Tests of the table between our parameters and the tensors of PyTorch, by independent transpositions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.checkpoint.pytorch_names import (
    TABLE_NAMES,
    UNUSED_HEAD,
    is_pi0,
    parts_of,
    plain_names,
    put_back,
    tensor_shapes,
    turned,
)
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Model
from tests.support.tiny import tiny

MODELS = {"tiny": tiny().model, "real": load_recipe("pi05_libero").model}
LAYERS, BLOCK = "PaliGemma/llm/layers", "PaliGemma/img/Transformer/encoderblock"
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model"
EXPERT = "paligemma_with_expert.gemma_expert.model"
# Path, a tensor of it, and how openpi's script gets it from the leaf.
BY_HAND = [
    (
        "PaliGemma/img/embedding/kernel",
        f"{VISION}.embeddings.patch_embedding.weight",
        lambda w: w.transpose(3, 2, 0, 1),
    ),
    (
        f"{BLOCK}/MultiHeadDotProductAttention_0/key/kernel",
        f"{VISION}.encoder.layers.0.self_attn.k_proj.weight",
        lambda w: w[0].reshape(w.shape[1], -1).T,
    ),
    (
        f"{BLOCK}/MultiHeadDotProductAttention_0/out/kernel",
        f"{VISION}.encoder.layers.0.self_attn.out_proj.weight",
        lambda w: w[0].reshape(-1, w.shape[-1]).T,
    ),
    (
        f"{LAYERS}/attn/q_einsum_1/w",
        f"{EXPERT}.layers.2.self_attn.q_proj.weight",
        lambda w: w[2].transpose(0, 2, 1).reshape(-1, w.shape[2]),
    ),
    (
        f"{LAYERS}/attn/kv_einsum_1/w",
        f"{EXPERT}.layers.3.self_attn.v_proj.weight",
        lambda w: w[3, 1, 0].T,
    ),
    (
        f"{LAYERS}/attn/attn_vec_einsum_1/w",
        f"{EXPERT}.layers.1.self_attn.o_proj.weight",
        lambda w: w[1].reshape(-1, w.shape[-1]).T,
    ),
    (f"{LAYERS}/mlp_1/gating_einsum", f"{EXPERT}.layers.1.mlp.up_proj.weight", lambda w: w[1, 1].T),
    (f"{LAYERS}/mlp_1/linear", f"{EXPERT}.layers.0.mlp.down_proj.weight", lambda w: w[0].T),
]


def leaf(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_and_each_element_of_it_has_one_tensor(name: str) -> None:
    shapes = {path: shape for path, shape in parameter_shapes(MODELS[name]).items() if "lora" not in path}
    parts = parts_of(shapes)
    assert set(parts) == set(shapes)
    assert all(
        sum(math.prod(part.shape) for part in parts[path]) == math.prod(shapes[path]) for path in shapes
    )
    names = [part.name for each in parts.values() for part in each]
    assert len(names) == len(set(names))


def test_there_and_back_changes_no_bit() -> None:
    for path, shape in parameter_shapes(MODELS["tiny"]).items():
        there, back = leaf(shape), np.zeros(shape, np.float32)
        for part in parts_of({path: shape})[path]:
            tensor = turned(there, part)
            assert tensor.flags.c_contiguous
            assert tensor.shape == part.shape
            put_back(tensor, part, back)
        np.testing.assert_array_equal(back, there, err_msg=path)


@pytest.mark.parametrize(("path", "name", "by_hand"), BY_HAND, ids=[name for _, name, _ in BY_HAND])
def test_the_table_turns_as_openpis_script_does(path: str, name: str, by_hand: object) -> None:
    shape = parameter_shapes(MODELS["tiny"])[path]
    whole = leaf(shape)
    (part,) = (part for part in parts_of({path: shape})[path] if part.name == name)
    np.testing.assert_array_equal(turned(whole, part), by_hand(whole))  # type: ignore[operator]


def test_matrices_larger_than_a_tile_are_turned_whole() -> None:
    shape = (2, 2, 300, 530)
    whole, back = leaf(shape), np.zeros(shape, np.float32)
    for part in parts_of({f"{LAYERS}/mlp/gating_einsum": shape})[f"{LAYERS}/mlp/gating_einsum"]:
        np.testing.assert_array_equal(turned(whole, part), whole[part.at].T)
        put_back(turned(whole, part), part, back)
    np.testing.assert_array_equal(back, whole)


def test_the_token_table_counts_once_and_prefixes_are_taken_off() -> None:
    assert plain_names({f"model.{TABLE_NAMES[1]}": 0}) == {TABLE_NAMES[0]: f"model.{TABLE_NAMES[1]}"}
    both = plain_names({f"model.{name}": 0 for name in TABLE_NAMES})
    assert both == {TABLE_NAMES[0]: f"model.{TABLE_NAMES[1]}"}
    assert plain_names({"_orig_mod.action_in_proj.bias": 0}) == {
        "action_in_proj.bias": "_orig_mod.action_in_proj.bias"
    }
    with pytest.raises(ValueError, match="two tensors"):
        plain_names({"model.a": 0, "a": 0})


def test_pi0_is_told_from_pi05() -> None:
    assert is_pi0({"state_proj.weight": 0})
    assert is_pi0({"model.action_time_mlp_in.bias": 0})
    assert not is_pi0(tensor_shapes(Model(), "lerobot"))


def test_a_file_of_theirs_has_the_unused_head_too() -> None:
    assert tensor_shapes(Model(), "openpi-pytorch")[UNUSED_HEAD] == (257_152, 1024)
