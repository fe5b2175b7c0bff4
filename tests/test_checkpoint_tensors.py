"""Tests that damaged, foreign and mixed files of PyTorch weights are named, and not read as others."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz_weights import judge, read
from benchmarks.fuzz_weights_mutations import MUTATIONS, WHOLE, shapes, sharded, tensors, write
from harness.checkpoint.inspect_pytorch import inspect_pytorch
from harness.checkpoint.pytorch_names import PREFIX, TABLE_NAMES, UNUSED_HEAD
from harness.checkpoint.source import find_params
from harness.checkpoint.tensors import tensor_leaves
from harness.errors import HarnessError


def code(folder: Path) -> str:
    with pytest.raises(HarnessError) as caught:
        tensor_leaves(find_params(folder), shapes())
    return caught.value.code


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("whole")
    write(folder / WHOLE, tensors(0))
    return folder, read(folder)


@pytest.mark.parametrize("number", range(len(MUTATIONS)), ids=lambda n: f"{n}{MUTATIONS[n].__name__}")
def test_a_mutated_file_is_named_or_gives_the_same_numbers(
    number: int, whole: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, before = whole
    for seed in (0, 1):
        case = shutil.copytree(folder, tmp_path / f"case{seed}")
        MUTATIONS[number](case / WHOLE, random.Random(seed))
        # What a mutation writes anew has the names of either program and the numbers of the first.
        assert judge(case, [before]) not in ("crash", "silent")


def test_shards_and_the_whole_file_give_the_same(
    whole: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    sharded(tmp_path, tensors(0), None, "")
    found = read(tmp_path)
    assert found.keys() == whole[1].keys()
    assert all(np.array_equal(found[path], value) for path, value in whole[1].items())
    (tmp_path / "model.safetensors.index.json").unlink()
    assert read(tmp_path).keys() == found.keys()


@pytest.mark.parametrize("way", ["metadata", "type"])
def test_shards_of_two_runs_are_named(way: str, tmp_path: Path) -> None:
    sharded(tmp_path, tensors(0), tensors(2), way)
    assert code(tmp_path) == "checkpoint-damaged"


def test_the_table_by_its_other_name_is_read(tmp_path: Path) -> None:
    given = tensors(0)
    table = given.pop(TABLE_NAMES[0])
    write(tmp_path / WHOLE, {**given, TABLE_NAMES[1]: table})
    assert np.array_equal(read(tmp_path)["PaliGemma/llm/embedder/input_embedding"], table)


def test_the_table_beside_another_text_head_is_what_is_looked_up(tmp_path: Path) -> None:
    """LeRobot 0.6.1 does not tie the two: training moves the table, and saves both."""
    given = tensors(1)
    head, table = (f"{PREFIX['lerobot']}{name}" for name in TABLE_NAMES)
    given[table] = given[head] + 1
    write(tmp_path / WHOLE, given)
    assert np.array_equal(read(tmp_path)["PaliGemma/llm/embedder/input_embedding"], given[table])
    found = inspect_pytorch(tmp_path)
    assert found is not None
    assert found.parameters_total == sum(math.prod(shape) for shape in shapes().values())


def test_a_missing_unused_head_is_no_loss_and_another_missing_tensor_is_named(tmp_path: Path) -> None:
    given = tensors(1)
    del given[f"{PREFIX['lerobot']}{UNUSED_HEAD}"]
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / WHOLE, given)
    assert read(tmp_path / "a")
    del given["model.time_mlp_out.bias"]
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / WHOLE, given)
    with pytest.raises(HarnessError, match=r"time_mlp_out.bias is missing") as caught:
        tensor_leaves(find_params(tmp_path / "b"), shapes())
    assert caught.value.code == "weights-mismatch"


def test_another_action_dimension_names_the_key(tmp_path: Path) -> None:
    given = tensors(0)
    for name in ("action_in_proj.weight", "action_out_proj.weight", "action_out_proj.bias"):
        shape = [7 if size == 32 else size for size in given[name].shape]
        given[name] = np.ones(shape, np.float32)
    write(tmp_path / WHOLE, given)
    with pytest.raises(HarnessError) as caught:
        tensor_leaves(find_params(tmp_path), shapes())
    assert "model.action_dim=7" in str(caught.value.fix)


def test_pi0_and_adapters_alone_are_named(tmp_path: Path) -> None:
    for name, extra, expected in (
        ("pi0", "state_proj.weight", "weights-of-pi0"),
        ("peft", "base_model.model.model.action_in_proj.lora_A.weight", "weights-are-adapters"),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name / WHOLE, {**tensors(0), extra: np.ones((2, 2), np.float32)})
        assert code(tmp_path / name) == expected


def test_a_run_of_several_steps_asks_for_one(tmp_path: Path) -> None:
    for step in ("000010", "000020"):
        folder = tmp_path / "checkpoints" / step / "pretrained_model"
        folder.mkdir(parents=True)
        write(folder / WHOLE, tensors(1))
        (folder / "config.json").write_text(json.dumps({"type": "pi05", "n_obs_steps": 1}))
    assert code(tmp_path) == "weights-step-needed"
    assert find_params(tmp_path / "checkpoints/000010").parent.name == "pretrained_model"
