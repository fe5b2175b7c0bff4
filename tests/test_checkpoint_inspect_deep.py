"""Tests `inspect --deep` and `--against`: digests, adapters' effective rank, and moved parts.

The expected values come from plain numpy.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import cast

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from rich.console import Console

from harness.artifacts import Checkpoint
from harness.checkpoint import chunks
from harness.checkpoint.adapters import effective_ranks
from harness.checkpoint.format import outside
from harness.checkpoint.inspect import inspect
from harness.checkpoint.item import read_item
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.report.page import render
from harness.run.directory import RunDir
from harness.show.checkpoint import checkpoint_table
from harness.show.moved_picture import write
from tests.support.item_writer import write_item, write_step
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint

Q = "PaliGemma/llm/layers/attn/q_einsum"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def store_of(
    values: np.ndarray, chunk: tuple[int, ...], directory: Path, compressor: dict | None
) -> chunks.Stored:
    spec = {
        "driver": "zarr",
        "kvstore": directory.as_uri() + "/",
        "metadata": {"chunks": list(chunk), "compressor": compressor},
    }
    store = ts.open(spec, create=True, shape=values.shape, dtype=ts.dtype(values.dtype.name)).result()
    store.write(values).result()
    item = read_item(directory.parent)
    array = next(array for array in item.arrays.values() if array.name == directory.name)
    return chunks.stored(item, array, store)


@pytest.mark.parametrize("chunk", [(6, 5, 4), (2, 5, 4), (6, 2, 3), (4, 3, 2), (1, 1, 1)])
@pytest.mark.parametrize("elements", [7, 20, 1000])
def test_pieces_are_the_same_however_an_array_is_chunked(
    tmp_path: Path, chunk: tuple[int, ...], elements: int
) -> None:
    values = normal(6, 5, 4)
    parts = list(chunks.pieces(store_of(values, chunk, tmp_path / "x", None), elements))
    assert np.array_equal(np.concatenate(parts), values.reshape(-1))
    assert [part.size for part in parts[:-1]] == [elements] * (len(parts) - 1)


def test_pieces_of_a_large_single_chunk_are_decompressed_as_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = normal(300, 70)
    store = store_of(values, (300, 70), tmp_path / "x", {"id": "zstd", "level": 1})
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1024)
    monkeypatch.setattr(chunks, "c_order_slabs", lambda *_: pytest.fail("the chunk was read whole"))
    assert np.array_equal(np.concatenate(list(chunks.pieces(store, 999))), values.reshape(-1))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_pieces_of_odd_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    parts = list(
        chunks.pieces(
            store_of(np.ones(shape, np.float32), tuple(max(n, 1) for n in shape), tmp_path / "x", None)
        )
    )
    assert sum(part.size for part in parts) == math.prod(shape)


def test_digest_of_a_leaf_is_that_of_its_elements(tmp_path: Path) -> None:
    values, half = normal(4, 3), normal(5).astype(ml_dtypes.bfloat16)
    write_step(tmp_path / "1", {"action_in_proj/kernel": values, "action_in_proj/bias": half})
    leaves = {leaf.path: leaf for leaf in inspect(tmp_path, deep=True).leaves}
    assert leaves["params/action_in_proj/kernel/value"].sha256 == hashlib.sha256(values.tobytes()).hexdigest()
    assert leaves["params/action_in_proj/bias/value"].sha256 == hashlib.sha256(half.tobytes()).hexdigest()
    assert leaves["params/action_in_proj/kernel/value"].norm == pytest.approx(
        float(np.linalg.norm(values.astype(np.float64)))
    )


def test_codes_have_digests_but_no_norm(tmp_path: Path) -> None:
    # Moments of eight bits and quantized weights: their integers are not values of the network.
    params = {
        "action_in_proj/kernel": np.arange(6, dtype=np.int8),
        "action_in_proj/scale": np.ones(2, np.float32),
    }
    write_step(tmp_path / "1", params | {"time_mlp_in/bias": np.arange(4, dtype=np.uint8)})
    found = inspect(tmp_path, deep=True)
    assert found.parameters["projections"].dtypes == ["float32", "int8", "uint8"]
    assert found.parameters["projections"].norm == pytest.approx(math.sqrt(2))
    assert {leaf.dtype: leaf.norm for leaf in found.leaves if leaf.dtype != "float32"} == {
        "int8": None,
        "uint8": None,
    }
    assert all(leaf.sha256 for leaf in found.leaves)
    assert checkpoint_table(found)


def test_who_was_trained_shows_in_any_optimizers_state(tmp_path: Path) -> None:
    # Quantized and factored moments keep several arrays a parameter, under keys of their own.
    params = {
        "action_in_proj/kernel": normal(4, 4),
        "time_mlp_in/kernel": normal(4, 4),
        "action_out_proj/kernel": normal(4, 4),
    }
    write_step(tmp_path / "1", params, [])
    shutil.rmtree(tmp_path / "1/train_state")
    state = {
        f"opt_state/0/mu/action_in_proj/kernel/{part}": np.ones(2, np.uint8) for part in ("codes", "scale")
    }
    write_item(
        tmp_path / "1/train_state",
        state
        | {
            "opt_state/1/v_row/time_mlp_in/kernel/value": normal(4),
            "opt_state/2/count": np.ones(1, np.int32),
        },
    )
    assert inspect(tmp_path).parameters_trained == 32


def test_effective_rank_by_hand() -> None:
    found = effective_ranks(
        np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    )
    assert found == pytest.approx([2, 1, 0, 4])


def test_adapters_product_is_that_of_the_matrices(tmp_path: Path) -> None:
    a, b, w = normal(3, 2, 8, 4), normal(3, 2, 4, 5, seed=1), normal(3, 2, 8, 5, seed=2)
    vec_a, vec_b = normal(3, 2, 5, 4, seed=3), normal(3, 2, 4, 8, seed=4)
    vec = Q.replace("q_einsum", "attn_vec_einsum")
    write_step(
        tmp_path / "1",
        {f"{Q}/w": w, f"{Q}/lora_a": a, f"{Q}/lora_b": b, f"{vec}/lora_a": vec_a, f"{vec}/lora_b": vec_b},
    )
    adapters = {each.path: each for each in inspect(tmp_path, deep=True).adapters}
    product = a.astype(np.float64) @ b
    singular = np.linalg.svd(product, compute_uv=False)[..., :4]
    p = singular / singular.sum(-1, keepdims=True)
    ranks = np.exp(-(p * np.log(p)).sum(-1))
    assert adapters[Q].product_norm == pytest.approx(np.linalg.norm(product))
    assert adapters[Q].relative == pytest.approx(np.linalg.norm(product) / np.linalg.norm(w), rel=1e-6)
    assert adapters[Q].effective_rank == pytest.approx((ranks.min(), np.median(ranks), ranks.max()))
    # The heads of attn_vec_einsum share one bottleneck.
    assert adapters[vec].product_norm == pytest.approx(
        np.linalg.norm(vec_a.astype(np.float64) @ vec_b.sum(1, keepdims=True))
    )
    assert adapters[vec].relative is None


@pytest.mark.parametrize("size", [1e200, 1e154, 1.7e308])
@pytest.mark.parametrize("name", ["q_einsum", "attn_vec_einsum"])
def test_norms_beyond_float64_are_told_as_not_finite(tmp_path: Path, size: float, name: str) -> None:
    path = Q.replace("q_einsum", name)
    signs = [
        np.sign(normal(*shape, seed=seed)).astype(np.float64)
        for seed, shape in enumerate(((3, 2, 8, 5), (3, 2, 8, 4), (3, 2, 4, 5)))
    ]
    halves = [f"{path}/{half}" for half in ("w", "lora_a", "lora_b")]
    plain, large = (dict(zip(halves, (each * s for each in signs), strict=True)) for s in (1.0, size))
    for step, params in enumerate((plain, large, {key: -value for key, value in large.items()}), 1):
        write_step(tmp_path / "run/checkpoints" / str(step), params)
    usual = inspect(tmp_path / "run/checkpoints/1", deep=True)
    found = inspect(tmp_path / "run/checkpoints", deep=True, against="2")
    assert Checkpoint.model_validate_json(found.model_dump_json()) == found
    assert (found.non_finite, found.partial) == (0, False)
    assert [leaf.norm for leaf in found.leaves if leaf.item == "params"] == [None] * 3
    assert found.parameters["language"].norm is None
    (adapter,) = found.adapters
    assert (adapter.product_norm, adapter.relative) == (None, None)
    assert adapter.effective_rank == pytest.approx(usual.adapters[0].effective_rank)
    assert not any("learned nothing" in finding for finding in found.findings)
    assert found.moved is not None
    assert {(part.update_norm, part.relative, part.changed) for part in found.moved.groups} == {
        (None, None, 1.0)
    }
    assert write(found, tmp_path, tmp_path).read_bytes().startswith(b"\x89PNG")
    console = Console(file=io.StringIO(), width=200)
    console.print(checkpoint_table(found))
    assert cast(io.StringIO, console.file).getvalue().count("not finite") == 5
    run = RunDir(tmp_path / "run")
    run.write(found)
    assert render(run).count(">not finite</td>") == 5
    since_base = inspect(tmp_path / "run/checkpoints/1", against=str(tmp_path / "run/checkpoints/2")).moved
    assert since_base is not None
    assert {part.base_norm for part in since_base.groups} == {None}


def test_adapters_that_learned_nothing_are_a_finding(tmp_path: Path) -> None:
    write_step(
        tmp_path / "1", {f"{Q}/lora_a": normal(2, 8, 4), f"{Q}/lora_b": np.zeros((2, 4, 5), np.float32)}
    )
    found = inspect(tmp_path, deep=True)
    assert found.adapters[0].effective_rank is None
    assert any("learned nothing" in finding for finding in found.findings)
    write_step(tmp_path / "2", {f"{Q}/lora_a": normal(2, 8, 4), f"{Q}/lora_b": normal(2, 4, 5)})
    assert not any("learned nothing" in finding for finding in inspect(tmp_path, deep=True).findings)


def test_moved_since_another_step(tmp_path: Path) -> None:
    before = {
        f"{Q}/w": normal(3, 4, 5),
        "PaliGemma/img/embedding/kernel": normal(4, 4),
        "action_in_proj/bias": np.zeros(4, np.float32),
    }
    after = {path: values.copy() for path, values in before.items()}
    after[f"{Q}/w"][1] += 0.5
    after["action_in_proj/bias"][:2] = 3
    write_step(tmp_path / "1", before)
    write_step(tmp_path / "2", after)
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    groups = {part.name: part for part in moved.groups}
    assert groups["vision"].update_norm == 0
    assert groups["language"].update_norm == pytest.approx(0.5 * math.sqrt(20))
    assert groups["language"].relative == pytest.approx(
        0.5 * math.sqrt(20) / np.linalg.norm(before[f"{Q}/w"]), rel=1e-6
    )
    assert groups["language"].changed == pytest.approx(1 / 3)
    assert (groups["projections"].relative, groups["projections"].changed) == (None, 0.5)
    layers = {
        part.layer: bool(part.update_norm) for part in moved.blocks if part.name == "language attention"
    }
    assert layers == {0: False, 1: True, 2: False}
    assert (moved.against_step, moved.only_here, moved.only_there, moved.not_compared) == (1, [], [], [])


def test_trained_parameters_that_did_not_move_are_noted(tmp_path: Path) -> None:
    before = {"time_mlp_in/bias": normal(4), "action_in_proj/bias": normal(4)}
    for step, after in ((1, before), (2, before | {"action_in_proj/bias": normal(4, seed=1)})):
        write_step(tmp_path / str(step), after, list(before))
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    assert [note for note in moved.notes if "time_mlp_in/bias" in note and "were trained" in note]
    assert not any("action_in_proj" in note for note in moved.notes)


def test_layers_are_told_apart_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f"{Q}/w": normal(5, 3, 7)}
    after = {f"{Q}/w": before[f"{Q}/w"] + np.arange(5, dtype=np.float32)[:, None, None]}
    write_step(tmp_path / "1", before)
    write_step(tmp_path / "2", after)
    for block in (1, 10, 21, 50, 1000):
        monkeypatch.setattr("harness.checkpoint.deep.BLOCK", block)
        moved = inspect(tmp_path, against="1").moved
        assert moved is not None
        assert [part.update_norm for part in moved.blocks] == pytest.approx(
            [layer * math.sqrt(21) for layer in range(5)], rel=1e-5
        )


def test_rounding_to_another_dtype_is_no_movement(tmp_path: Path) -> None:
    values = normal(3, 4, 5)
    write_step(tmp_path / "1", {f"{Q}/w": values})
    write_step(tmp_path / "2", {f"{Q}/w": values.astype(ml_dtypes.bfloat16)})
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    assert moved.groups[0].update_norm == 0
    assert any("another dtype" in note for note in moved.notes)
    assert any("nothing moved" in note for note in moved.notes)


def test_lora_against_the_weights_below_counts_as_its_product(tmp_path: Path) -> None:
    w, a, b = normal(3, 2, 8, 5), normal(3, 2, 8, 4, seed=1), normal(3, 2, 4, 5, seed=2)
    write_step(tmp_path / "base", {f"{Q}/w": w})
    write_step(
        tmp_path / "run/7", {f"{Q}/w": w.astype(ml_dtypes.bfloat16), f"{Q}/lora_a": a, f"{Q}/lora_b": b}
    )
    product = a.astype(np.float64) @ b
    bare = inspect(tmp_path / "run", against=str(tmp_path / "base")).moved
    smoke = load_recipe("smoke").model_dump()
    smoke["model"]["paligemma"]["lora"] = {"rank": 4, "alpha": 8}
    recipe = type(load_recipe("smoke")).model_validate(smoke)
    scaled = inspect(tmp_path / "run", against=str(tmp_path / "base"), recipe=recipe).moved
    assert bare is not None
    assert scaled is not None
    found = {part.name: part for part in bare.groups}
    rounded = np.linalg.norm(w.astype(ml_dtypes.bfloat16).astype(np.float64))
    assert found["language"].update_norm == 0
    assert found["adapters"].update_norm == pytest.approx(np.linalg.norm(product))
    assert found["adapters"].relative == pytest.approx(np.linalg.norm(product) / rounded, rel=1e-6)
    assert next(part for part in scaled.groups if part.name == "adapters").update_norm == pytest.approx(
        2 * np.linalg.norm(product)
    )
    assert bare.only_here == [f"{Q}/lora_a", f"{Q}/lora_b"]


def test_base_is_the_one_that_the_step_names(tmp_path: Path) -> None:
    write_step(tmp_path / "base", {f"{Q}/w": normal(3, 4, 5), "action_in_proj/bias": np.ones(4, np.float32)})
    write_step(tmp_path / "run/7", {"action_in_proj/bias": np.full(4, 2, np.float32)})
    (tmp_path / "run/7/harness").mkdir()
    (tmp_path / "run/7/harness/record.json").write_text("{}")
    (tmp_path / "run/7/harness/base.json").write_text(f'{{"source": "{tmp_path / "base"}", "sha256": "x"}}')
    found = inspect(tmp_path / "run", against="base")
    assert found.base == str(tmp_path / "base")
    assert found.moved is not None
    assert [(part.name, part.relative) for part in found.moved.groups] == [
        ("projections", pytest.approx(1.0))
    ]
    assert found.moved.only_there == [f"{Q}/w"]


@pytest.mark.parametrize(
    ("against", "code"),
    [("base", "nothing-to-compare"), ("9", "nothing-to-compare"), ("nowhere", "checkpoint-missing")],
)
def test_nothing_to_compare_with(tmp_path: Path, against: str, code: str) -> None:
    write_step(tmp_path / "1", {"action_in_proj/bias": np.ones(4, np.float32)})
    with pytest.raises(HarnessError) as caught:
        inspect(tmp_path, against=against)
    assert caught.value.code == code


def test_other_shapes_and_codes_are_named_not_compared(tmp_path: Path) -> None:
    write_step(
        tmp_path / "1",
        {"action_in_proj/bias": np.ones(4, np.float32), "time_mlp_in/bias": np.ones(4, np.float32)},
    )
    write_step(
        tmp_path / "2",
        {"action_in_proj/bias": np.ones(5, np.float32), "time_mlp_in/bias": np.ones(4, np.int8)},
    )
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    assert moved.not_compared == ["action_in_proj/bias", "time_mlp_in/bias"]
    assert moved.groups == []


def test_golden_steps_and_the_picture(tmp_path: Path) -> None:
    root = openpi_checkpoint("lora", tmp_path)
    found = inspect(root, deep=True, against=str(openpi_checkpoint("full", tmp_path) / str(STEP["full"])))
    assert found.moved is not None
    assert {part.name: bool(part.update_norm) for part in found.moved.groups} == {
        "vision": False,
        "language": False,
        "expert": False,
        "adapters": True,
        "projections": False,
    }
    assert len(found.adapters) == 10
    assert all(
        each.effective_rank and 1 <= each.effective_rank[0] <= each.effective_rank[2] <= 4
        for each in found.adapters
    )
    assert write(found, root, tmp_path).read_bytes().startswith(b"\x89PNG")
    assert Checkpoint.model_validate_json(found.model_dump_json()) == found
    same = inspect(root, against=str(STEP["lora"]))
    assert write(same, root, tmp_path).read_bytes().startswith(b"\x89PNG")
    assert checkpoint_table(found)


def test_some_chunks_that_are_gone_are_told(tmp_path: Path) -> None:
    directory = tmp_path / "1/params"
    directory.mkdir(parents=True)
    store_of(normal(8, 4), (2, 4), directory / "params.action_in_proj.kernel.value", None)
    (directory / "params.action_in_proj.kernel.value/2.0").unlink()
    keys = ["params", "action_in_proj", "kernel", "value"]
    tree = {
        str(tuple(keys)): {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": "jax.Array"},
        }
    }
    older = f'{{"tree_metadata": {json.dumps(tree)}, "use_zarr3": false}}'
    (directory / "_METADATA").write_text(older)
    found = inspect(tmp_path, deep=True)
    assert any("lack some of their chunks" in finding for finding in found.findings)
    assert found.leaves[0].missing_chunks == 1
    (directory / "_METADATA").write_text(
        older.replace('"use_zarr3"', '"store_array_data_equal_to_fill_value": true, "use_zarr3"')
    )
    assert inspect(tmp_path).steps[0].missing == [
        "params: array params/action_in_proj/kernel/value lacks 1 of 4 chunks"
    ]


def test_arrays_that_are_not_those_that_were_saved(tmp_path: Path) -> None:
    values = normal(4)
    write_step(tmp_path / "1", {"action_in_proj/bias": values})
    (tmp_path / "1/harness").mkdir()
    (tmp_path / "1/harness/record.json").write_text("{}")
    record = {
        "files": {},
        "leaves": {"params/params/action_in_proj/bias/value": hashlib.sha256(values.tobytes()).hexdigest()},
    }
    (tmp_path / "1/harness/digests.json").write_text(json.dumps(record))
    assert inspect(tmp_path, deep=True).findings == []
    record["leaves"] = dict.fromkeys(record["leaves"], "0" * 64)
    (tmp_path / "1/harness/digests.json").write_text(json.dumps(record))
    assert any("not those that were saved" in finding for finding in inspect(tmp_path, deep=True).findings)


def test_data_outside_of_the_item_is_not_read(tmp_path: Path) -> None:
    write_step(tmp_path / "1", {"action_in_proj/bias": normal(4000)})
    params = tmp_path / "1/params"
    (data,) = (path for path in (params / "d").iterdir() if path.stat().st_size > 8000)
    found = inspect(tmp_path, deep=True)
    assert (found.partial, found.non_finite) == (False, 0)
    assert not outside(str(data.relative_to(params)))
    assert all(outside(name) for name in ("../d/x", "/etc/passwd", "a/../../b", "file:///etc/passwd"))


def test_statistics_that_are_damaged_leave_the_step_not_whole(tmp_path: Path) -> None:
    root = openpi_checkpoint("full", tmp_path)
    (file,) = root.rglob("norm_stats.json")
    file.write_bytes(b"\x00\xff" * 50)
    found = inspect(root)
    assert found.steps[0].missing == ["assets: physical-intelligence/libero/norm_stats.json is damaged"]
    assert found.parameters_total == 544_160


def test_metadata_of_absurd_depth(tmp_path: Path) -> None:
    write_step(tmp_path / "1", {"action_in_proj/bias": normal(4)})
    (tmp_path / "1/params/_METADATA").write_text("[" * 100_000)
    found = inspect(tmp_path)
    assert (found.partial, found.parameters_total) == (True, 4)
