"""Tests `inspect --deep`: digests, norms, adapters' effective rank, and what was saved but is not there.

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
from harness.checkpoint import chunks, stored
from harness.checkpoint.adapters import effective_ranks
from harness.checkpoint.format import outside
from harness.checkpoint.inspect import inspect
from harness.checkpoint.item import read_item
from harness.report.page import render
from harness.run.directory import RunDir
from harness.show.checkpoint import checkpoint_table
from harness.show.moved_picture import write
from tests.support.item_writer import Q, normal, write_item, write_step
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.report_run import manifest


def store_of(
    values: np.ndarray, chunk: tuple[int, ...], directory: Path, compressor: dict | None
) -> stored.Stored:
    spec = {
        "driver": "zarr",
        "kvstore": directory.as_uri() + "/",
        "metadata": {"chunks": list(chunk), "compressor": compressor},
    }
    store = ts.open(spec, create=True, shape=values.shape, dtype=ts.dtype(values.dtype.name)).result()
    store.write(values).result()
    item = read_item(directory.parent)
    array = next(array for array in item.arrays.values() if array.name == directory.name)
    return stored.stored(item, array, store)


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
    weights_alone = "not whole: train_state/; its weights can be used"
    assert any(weights_alone in finding for finding in inspect(tmp_path).findings)
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
    found = inspect(tmp_path, deep=True)
    assert any("not those that were saved" in finding for finding in found.findings)
    # A resume refuses such a step, so it is not whole.
    assert not found.steps[0].complete


def test_texts_that_are_not_those_that_were_saved(tmp_path: Path) -> None:
    """A resume refuses such a step, so it is not whole; nor is one of another name to be resumed from."""
    step = tmp_path / "run/checkpoints/8"
    write_step(step, {"action_in_proj/bias": normal(4)})
    (step / "harness").mkdir()
    (step / "assets/sample").mkdir(parents=True)
    texts = {"harness/record.json": '{"step": 8}', "assets/sample/norm_stats.json": "{}"}
    for name, text in texts.items():
        (step / name).write_text(text)
    files = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    (step / "harness/digests.json").write_text(json.dumps({"files": files, "leaves": {}}))
    RunDir(tmp_path / "run").write(manifest())
    assert inspect(step).steps[0].missing == []
    for name, text in texts.items():
        (step / name).write_text('{"x": 1}')
        assert inspect(step).steps[0].missing == [f"{name} has changed since it was saved"]
        (step / name).write_text(text)
    # Line ends of Windows change no value.
    (step / "assets/sample/norm_stats.json").write_bytes(b"{}\r\n")
    (step / "harness/digests.json").write_text(
        json.dumps({"files": {name: hashlib.sha256(b"{}\n").hexdigest()}, "leaves": {}})
    )
    assert inspect(step).steps[0].missing == []
    (step / "harness/digests.json").write_bytes(bytes(300))
    assert "harness/digests.json is damaged" in inspect(step).steps[0].missing[0]
    (step / "harness/digests.json").unlink()
    step.rename(step.with_name("12"))
    assert "it was renamed, since its record is of 8" in str(inspect(tmp_path / "run").findings)


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
