"""Tests what is read of adapters that PEFT or LeRobot saved, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.export import write_params
from harness.checkpoint.locate import locate
from harness.checkpoint.peft import FILE, open_peft
from harness.checkpoint.peft_config import CONFIG
from harness.checkpoint.pytorch_names import TABLE_NAMES
from harness.checkpoint.safetensors import read_whole_header
from harness.checkpoint.tensor_writer import Planned, write_tensors
from harness.errors import HarnessError
from harness.predict.deliver import Wish, deliver
from harness.recipe.parameters import EMBEDDING
from tests.support.exported import ADAPTERS, seeded, write_checkpoint
from tests.support.tiny import tiny


def say(_: str) -> None: ...


def write_peft_file(directory: Path, arrays: dict[str, np.ndarray], **config: object) -> Path:
    directory.mkdir()
    planned = [Planned(name, array.shape, "float32") for name, array in arrays.items()]
    write_tensors(directory / FILE, planned, arrays.items())
    body = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": True, **config}
    (directory / CONFIG).write_text(json.dumps(body))
    return directory


MODULE = "base_model.model.model.action_in_proj"
PAIR = {f"{MODULE}.lora_A.weight": np.ones((2, 3)), f"{MODULE}.lora_B.weight": np.ones((4, 2))}
REFUSED: dict[str, tuple[str, dict[str, np.ndarray], dict[str, object]]] = {
    "pissa": ("weights-base-differs", PAIR, {"init_lora_weights": "pissa_niter_16"}),
    "olora": ("weights-base-differs", PAIR, {"init_lora_weights": "olora"}),
    "a factor twice": (
        "checkpoint-damaged",
        PAIR | {f"{MODULE}.lora_A.default.weight": np.zeros((2, 3))},
        {},
    ),
    "a module twice": (
        "checkpoint-damaged",
        {f"{MODULE}.bias": np.ones(4), f"{MODULE}.modules_to_save.default.bias": np.zeros(4)},
        {},
    ),
    "nothing": ("checkpoint-damaged", {}, {}),
    "an alpha that is no number": ("checkpoint-damaged", PAIR, {"lora_alpha": float("nan")}),
    "alora": ("checkpoint-damaged", PAIR, {"alora_invocation_tokens": [1, 2]}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_adapters_of_which_the_sum_would_be_another_model_are_refused(kind: str, tmp_path: Path) -> None:
    code, arrays, config = REFUSED[kind]
    with pytest.raises(HarnessError) as caught:
        open_peft(write_peft_file(tmp_path / "peft", arrays, **config), {})
    assert caught.value.code == code


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"kasa_config": {"beta": 0.0001}},
        {"use_bdlora": {"nblocks": 2}},
    ],
)
def test_the_fix_for_another_kind_of_adapters_is_to_merge_them(
    config: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(HarnessError) as caught:
        open_peft(write_peft_file(tmp_path / "peft", PAIR, **config), {})
    assert "merge_and_unload" in caught.value.fix
    assert next(iter(config)) in (caught.value.got or "")


@pytest.mark.parametrize("prefix", ["module.base_model.model.model.", "base_model.model.policy._orig_mod."])
def test_adapters_of_a_wrapped_model_are_those_of_the_model(prefix: str, tmp_path: Path) -> None:
    name = "base_model.model.model."
    arrays = {key.replace(name, prefix): value for key, value in PAIR.items()}
    bias = {f"{prefix}action_in_proj.base_layer.bias": np.ones(4)}
    head = f"{prefix}paligemma_with_expert.gemma_expert.lm_head"
    unread = {
        f"{head}.lora_A.weight": np.ones((2, 3)),
        f"{head}.lora_B.weight": np.ones((4, 2)),
        "base_model.model.normalize_inputs.buffer_action.mean": np.ones(7),
    }
    found = open_peft(write_peft_file(tmp_path / "peft", arrays | bias | unread, lora_alpha=6), {})
    assert found.scales == {"action_in_proj.weight": 3.0}
    # The bias of a layer with adapters, as PEFT saves it with bias: lora_only.
    assert set(found.whole) == {"action_in_proj.bias"}


def test_the_rank_of_patterns_that_peft_has_sorted_is_the_tensors(tmp_path: Path) -> None:
    ranks = {"action_in_proj": 3, "model.action_in_proj": 2}
    found = open_peft(write_peft_file(tmp_path / "one", PAIR, rank_pattern=ranks, lora_alpha=4), {})
    assert found.scales == {"action_in_proj.weight": 2.0}
    # Of two alphas nothing tells which was the first.
    alphas = {"action_in_proj": 8, "model.action_in_proj": 4}
    with pytest.raises(HarnessError, match="has rank 2"):
        open_peft(write_peft_file(tmp_path / "two", PAIR, rank_pattern=ranks, alpha_pattern=alphas), {})


def test_the_bias_that_peft_saves_by_two_names_is_one(tmp_path: Path) -> None:
    names = [f"{MODULE}.{way}bias" for way in ("", "modules_to_save.", "original_module.")]
    arrays = dict(zip(names, (np.ones(4), np.ones(4), np.zeros(4)), strict=True))
    found = open_peft(write_peft_file(tmp_path / "peft", arrays, bias="all"), {})
    assert found.whole.keys() == {"action_in_proj.bias"}


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_start_that_leaves_the_base_as_it_is_is_read(start: object, tmp_path: Path) -> None:
    found = open_peft(write_peft_file(tmp_path / "peft", PAIR, init_lora_weights=start), {})
    assert found.scales == {"action_in_proj.weight": 1.0}


def test_a_trained_table_is_written_as_what_is_looked_up_and_a_head_changes_nothing(tmp_path: Path) -> None:
    """LeRobot 0.6.1 ties the table to no head: adapters of the head, or a copy of it, are read by nothing."""
    base = tmp_path / "base"
    recipe = tiny("train.trained=lora", ADAPTERS[1], f"weights.source={base}")
    plain = {path: value for path, value in seeded(recipe).items() if "lora" not in path}
    write_params(base / "params", plain.items())
    moved = seeded(recipe) | {EMBEDDING: plain[EMBEDDING] + 1}
    step = locate(str(write_checkpoint(tmp_path / "5", recipe, params=moved)))
    deliver(step, recipe, tmp_path / "peft", Wish("lerobot", alone=True), say)
    head, table = TABLE_NAMES
    named = {each.name for each in read_whole_header(tmp_path / "peft" / FILE, tmp_path).tensors}
    assert f"base_model.model.model.{table}" in named
    assert not any(name.endswith(head) for name in named)
    found = open_peft(tmp_path / "peft", {})
    assert head in found.whole
    module = f"base_model.model.model.{head.removesuffix('.weight')}"
    pair = {f"{module}.lora_{half}.weight": np.ones((2, 2)) for half in "AB"}
    theirs = write_peft_file(
        tmp_path / "theirs", {**PAIR, **pair, f"{module}.modules_to_save.weight": np.ones(2)}
    )
    assert open_peft(theirs, {}).whole == {}
    assert open_peft(theirs, {}).pairs.keys() == {"action_in_proj.weight"}
