"""Tests that odd weights of strangers are read where they are whole, and named rightly where they are not."""

from __future__ import annotations

import json
import os
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path

import flax
import ml_dtypes
import numpy as np
import pytest

from benchmarks.fuzz_weights import read
from benchmarks.fuzz_weights_mutations import INDEX, WHOLE, join, shapes, sharded, split, tensors, write
from harness.checkpoint.inspect import inspect
from harness.checkpoint.item import read_item
from harness.checkpoint.pytorch import find_pytorch
from harness.checkpoint.pytorch_names import TABLE_NAMES
from harness.checkpoint.safetensors import read_header
from harness.checkpoint.source import find_params, refusal, refuse_codes
from harness.checkpoint.tensors import tensor_leaves
from harness.checkpoint.whole import refuse_inside
from harness.errors import HarnessError
from tests.support.item_writer import normal, write_item

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 10\n"


def refused(folder: Path) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        tensor_leaves(find_params(folder), shapes())
    return caught.value


@pytest.mark.parametrize(
    "prefix", ["module.", "policy.model.", "_orig_mod.", "model._orig_mod.module.", "actor.net."]
)
def test_tensors_whose_names_all_have_a_prefix_are_read(prefix: str, tmp_path: Path) -> None:
    given = tensors(0)
    write(tmp_path / WHOLE, {f"{prefix}{name}": array for name, array in given.items()})
    found = read(tmp_path)
    assert np.array_equal(found["PaliGemma/llm/embedder/input_embedding"], given[TABLE_NAMES[0]])
    weights = find_pytorch(tmp_path)
    # What is no known wrapper is told.
    assert weights is not None
    assert ("actor.net." in weights.kind) == (prefix == "actor.net.")


def test_wrappers_within_a_name_are_read(tmp_path: Path) -> None:
    given = tensors(0)
    wrapped = {name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): a for name, a in given.items()}
    assert wrapped.keys() != given.keys()
    write(tmp_path / WHOLE, wrapped)
    assert read(tmp_path)


FORMS = {
    "transformers before 4.52": [
        ("paligemma.model.language_model.", "paligemma.language_model.model."),
        ("paligemma.lm_head.", "paligemma.language_model.lm_head."),
        ("paligemma.model.vision_tower.", "paligemma.vision_tower."),
        ("paligemma.model.multi_modal_projector.", "paligemma.multi_modal_projector."),
    ],
    "transformers from 5.6 on": [("vision_tower.vision_model.", "vision_tower.")],
}


def in_form(name: str, form: str) -> str:
    for usual, theirs in FORMS[form]:
        name = name.replace(usual, theirs)
    return name


@pytest.mark.parametrize("form", FORMS)
def test_names_of_other_versions_of_transformers_are_read(form: str, tmp_path: Path) -> None:
    given = tensors(1)
    twin = {f"model.{TABLE_NAMES[1]}": given[f"model.{TABLE_NAMES[0]}"]}
    for folder in ("theirs", "usual"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "usual" / WHOLE, given)
    write(
        tmp_path / "theirs" / WHOLE,
        {in_form(name, form): array for name, array in (given | twin).items()},
    )
    found = read(tmp_path / "theirs")
    assert all(np.array_equal(found[path], array) for path, array in read(tmp_path / "usual").items())


def test_buffers_and_weights_that_nothing_reads_are_passed_over(tmp_path: Path) -> None:
    more = {
        "normalize_inputs.buffer_observation_state.mean": np.full(8, np.inf, np.float32),
        "unnormalize_outputs.buffer_action.std": np.ones(7, np.float32),
        "model.paligemma_with_expert.gemma_expert.model.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.position_ids": (
            np.ones((1, 16), np.float32)
        ),
        "model.paligemma_with_expert.gemma_expert.model.embed_tokens.weight": np.ones((24, 4), np.float32),
        "model.paligemma_with_expert.paligemma.model.vision_tower.head.probe": np.ones((1, 1, 4), np.float32),
    }
    write(tmp_path / WHOLE, tensors(1) | more)
    assert read(tmp_path)
    found = inspect(tmp_path, deep=True)
    # The statistics are infinite, and the weights are not.
    assert found.non_finite == 0
    assert (found.parameters["buffers"].arrays, found.parameters["unused"].arrays) == (4, 3)


def test_two_prefixes_are_no_prefix(tmp_path: Path) -> None:
    write(tmp_path / WHOLE, {f"{'ab'[i % 2]}.{name}": a for i, (name, a) in enumerate(tensors(0).items())})
    assert refused(tmp_path).code == "weights-mismatch"


def test_a_remark_in_one_shard_only_makes_no_other_run(tmp_path: Path) -> None:
    sharded(tmp_path, tensors(0), None, "")
    second = tmp_path / "model-00002-of-00002.safetensors"
    data = second.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    second.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert read(tmp_path)


def test_the_index_by_its_own_name_means_its_shards(tmp_path: Path) -> None:
    sharded(tmp_path, tensors(0), None, "")
    assert find_params(tmp_path / INDEX) == tmp_path / INDEX
    found = inspect(tmp_path / INDEX)
    assert found.tensors == len(tensors(0))


@pytest.mark.parametrize(
    "beside", ["ema.safetensors", "model-00001-of-00001.safetensors", "._model.safetensors"]
)
def test_inspect_looks_at_the_files_that_are_read_and_not_at_those_beside_them(
    beside: str, tmp_path: Path
) -> None:
    write(tmp_path / WHOLE, tensors(0))
    write(tmp_path / beside, tensors(2))
    found = inspect(tmp_path)
    assert [item.name for item in found.steps[0].items] == [find_params(tmp_path).name] == [WHOLE]
    assert not any(" is in " in text for text in found.findings)


def test_a_transposed_projection_is_not_another_action_dimension(tmp_path: Path) -> None:
    given = tensors(0)
    name = "action_in_proj.weight"
    write(tmp_path / WHOLE, given | {name: np.ascontiguousarray(given[name].T)})
    assert "action_dim" not in refused(tmp_path).fix


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><html></html>", b"PK\x03\x04\x14\0\0\0", b""])
def test_a_page_in_place_of_tensors_is_to_be_downloaded_again(data: bytes, tmp_path: Path) -> None:
    (tmp_path / WHOLE).write_bytes(data)
    with pytest.raises(ValueError, match="header of 0 bytes" if not data else "begins with"):
        read_header(tmp_path / WHOLE, tmp_path)
    with pytest.raises(HarnessError) as caught:
        inspect(tmp_path)
    assert "download" in caught.value.fix


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / WHOLE).symlink_to("../blobs/gone")
    with pytest.raises(HarnessError) as caught:
        inspect(tmp_path)
    assert "leads nowhere" in (caught.value.got or "")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "step.tar", "w"):
        pass
    for path in (tmp_path, tmp_path / "step.tar"):
        for ask in (inspect, find_params):
            assert leads(ask, path).endswith(f"tar -xf {tmp_path}/step.tar")


def leads(ask: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(HarnessError) as caught:
        ask(path)
    return caught.value.fix


@pytest.mark.parametrize(
    ("files", "named", "way"),
    [
        ("models--a--b/snapshots/ab12/model.safetensors", "models--a--b", "models--a--b/snapshots/ab12"),
        ("checkpoint-500/model.safetensors.index.json", ".", "checkpoint-500"),
        ("7/pretrained_model/model.safetensors 7/training_state/a", "7/training_state", "7/pretrained_model"),
        ("zero_to_fp32.py step9/mp_rank_00_model_states.pt", "step9", "--tag step9 --safe_serialization"),
        ("step9/zero_pp_rank_0_mp_rank_00_optim_states.pt", ".", "zero_to_fp32 . OUT --tag step9 "),
        ("pytorch_model_fsdp_0/__0_0.distcp scheduler.bin", ".", "accelerate merge-weights"),
        ("pytorch_model.bin optimizer.bin", "pytorch_model.bin", "model.safetensors pytorch_model.bin,"),
        ("a-00001-of-00002.bin a-00002-of-00002.bin", ".", "a-00001-of-00002.bin a-00002-of-00002.bin,"),
        ("checkpoints/last.ckpt", ".", "checkpoints/last.ckpt"),
        ("checkpoint_10/_METADATA", ".", "checkpoint_10"),
        ("models--a--b/blobs/x.incomplete", "models--a--b", "hf download a/b "),
        (".cache/huggingface/download/x.incomplete config.json", ".", "not finished"),
        ("pt_224.npz", "pt_224.npz", "those of PaliGemma"),
        ("model.gguf", ".", "GGUF"),
    ],
)
def test_what_holds_no_weights_leads_to_those_that_it_has(
    files: str, named: str, way: str, tmp_path: Path
) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PK")
    for ask in (inspect, find_params):
        assert way in leads(ask, tmp_path / named).replace(f"{tmp_path}/", "").replace(str(tmp_path), ".")


@pytest.mark.parametrize("name", ["weights.npz", "params.msgpack"])
def test_the_fix_for_arrays_of_numpy_and_flax_writes_what_is_read(name: str, tmp_path: Path) -> None:
    arrays = {"params/a/kernel": np.ones((2, 3), np.float32), "params/a/bias": np.ones(3, ml_dtypes.bfloat16)}
    if name.endswith(".npz"):
        np.savez(tmp_path / name, allow_pickle=False, **arrays)
    else:
        (tmp_path / name).write_bytes(
            flax.serialization.to_bytes(flax.traverse_util.unflatten_dict(arrays, sep="/"))
        )
    fixes = {leads(ask, path) for ask in (inspect, find_params) for path in (tmp_path, tmp_path / name)}
    (command,) = (re.sub(r"^[^:]*: |, and name OUT$", "", fix) for fix in fixes)
    _, _, code, file, _ = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["-c", file, str(tmp_path / "out")])
        exec(code, {})
    item = read_item(tmp_path / "out")
    assert not item.problems
    assert {path: array.dtype for path, array in item.arrays.items()} == {
        path: array.dtype.name for path, array in arrays.items()
    }


def test_weights_in_an_item_of_another_name_are_led_to(tmp_path: Path) -> None:
    step = tmp_path / "10"
    write_item(step / "default", {"a": normal(2)})
    (step / "_CHECKPOINT_METADATA").write_text("{}")
    for path in (tmp_path, step):
        assert leads(find_params, path).endswith(str(step / "default"))
        assert f"harness inspect {step / 'default'}" in inspect(path).findings[-1]
    write_item(step / "params", {"a": normal(2)})
    (step / "default").rename(step / "train_state")
    assert leads(find_params, step / "train_state") == f"--set weights.source={step / 'params'}"
    assert not any("another item" in finding for finding in inspect(tmp_path).findings)


def test_quantized_weights_are_named_and_not_their_scales(tmp_path: Path) -> None:
    write(tmp_path / WHOLE, tensors(0) | {"action_in_proj.SCB": np.ones(4)})
    header, data = split(tmp_path / WHOLE)
    header["action_in_proj.weight"]["dtype"] = "I32"
    join(tmp_path / WHOLE, header, data)
    assert "quantized" in refused(tmp_path).what
    assert "from which these were made" in refused(tmp_path).fix


def test_the_step_that_lerobot_links_as_the_last_has_its_number(tmp_path: Path) -> None:
    (tmp_path / "000020/pretrained_model").mkdir(parents=True)
    write(tmp_path / "000020/pretrained_model" / WHOLE, tensors(0))
    (tmp_path / "last").symlink_to("000020")
    for path in (tmp_path / "last", tmp_path / "last/pretrained_model"):
        assert inspect(path).step == 20


def test_a_name_on_the_hub_is_to_be_downloaded() -> None:
    for ask in (inspect, find_params):
        assert "hf download lerobot/pi05_base" in leads(ask, Path("lerobot/pi05_base"))


@pytest.mark.parametrize("file", ["manifest.ocdbt", "_METADATA", "data"])
def test_a_pointer_of_git_lfs_in_an_item_is_named_once(file: str, tmp_path: Path) -> None:
    item = tmp_path / "params"
    write_item(item, {"params/a/value": normal(4, 4)})
    path = next((item / "d").iterdir()) if file == "data" else item / file
    path.write_text(POINTER)
    (problem,) = read_item(item).problems
    assert "pointer of Git LFS" in problem


def test_a_path_that_is_not_utf8_is_told_and_no_traceback(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff5")
    write_item(tmp_path / "5/params", {"params/a/value": normal(4, 4)})
    (tmp_path / "5").rename(folder)
    found = inspect(folder)
    assert any("not UTF-8" in text for text in found.findings)
    assert "udcff" in type(found).model_validate_json(found.text()).path


def test_the_form_of_pi0_in_jax_and_another_dimension_are_named() -> None:
    wanted = {"action_in_proj/kernel": (32, 64), "action_out_proj/kernel": (64, 32)}
    error = refusal("x", wanted | {"state_proj/kernel": (32, 64)}, wanted)
    assert error is not None
    assert error.code == "weights-of-pi0"
    error = refusal("x", {"action_in_proj/kernel": (7, 64), "action_out_proj/kernel": (64, 7)}, wanted)
    assert error is not None
    assert "model.action_dim=7" in error.fix


def test_parameters_of_eight_bits_are_refused() -> None:
    refuse_codes("x", {"a": "float16", "b": "bfloat16"})
    with pytest.raises(HarnessError, match="float8_e4m3fn"):
        refuse_codes("x", {"a": "float8_e4m3fn"})


def test_nothing_is_exported_into_its_source(tmp_path: Path) -> None:
    bare, params = tmp_path / "bare", tmp_path / "5/params"
    for folder in (bare, params):
        folder.mkdir(parents=True)
    refuse_inside(tmp_path / "out", [bare, params])
    refuse_inside(tmp_path / "5-export", [params])
    for inside in (bare / "out", params / "x", tmp_path / "5/x", params / "../x"):
        with pytest.raises(HarnessError) as caught:
            refuse_inside(inside, [bare, params])
        assert caught.value.code == "export-exists"
