"""Tests the arrays that `inspect` reads: their formats, missing chunks, norms, and what is not finite."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from harness.checkpoint.inspect import inspect
from harness.recipe.parameters import group_of
from tests.support.item_writer import write_item, write_step
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint


@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("ocdbt", [False, True])
def test_every_array_format_is_read(tmp_path: Path, zarr3: bool, ocdbt: bool) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "params/time_mlp_in/kernel/value": values,
        "params/time_mlp_in/bias/value": np.ones(3, ml_dtypes.bfloat16),
    }
    write_item(tmp_path / "params", arrays, zarr3=zarr3, ocdbt=ocdbt)
    found = inspect(tmp_path, deep=True)
    assert found.steps[0].missing == []
    assert found.parameters["projections"].dtypes == ["bfloat16", "float32"]
    assert found.parameters_total == 27
    assert found.parameters["projections"].norm == pytest.approx(math.sqrt(float((values**2).sum()) + 3))


def test_missing_chunks_are_counted(tmp_path: Path) -> None:
    write_item(tmp_path / "params", {"params/time_mlp_in/bias/value": np.ones(3, np.float32)}, ocdbt=False)
    (tmp_path / "params" / "params.time_mlp_in.bias.value" / "0").unlink()
    assert inspect(tmp_path).steps[0].missing == [
        "params: array params/time_mlp_in/bias/value lacks 1 of 1 chunks"
    ]


def test_deep_tree_of_many_keys(tmp_path: Path) -> None:
    # Small nodes make OCDBT's index several levels deep, as a real checkpoint's is.
    directory = tmp_path / "params"
    arrays = {f"params/block_{i}/kernel/value": np.full(2, i, np.float32) for i in range(60)}
    write_item(directory, arrays, empty=("x",))
    metadata = (directory / "_METADATA").read_text()
    shallow = ts.KvStore.open({"driver": "ocdbt", "base": directory.as_uri() + "/"}).result()
    deep = {"max_decoded_node_bytes": 500, "max_inline_value_bytes": 1}
    store = ts.KvStore.open(
        {"driver": "ocdbt", "base": (tmp_path / "deep/params").as_uri() + "/", "config": deep}
    ).result()
    for key in shallow.list().result():
        store.write(key, shallow.read(key).result().value).result()
    (tmp_path / "deep/params/_METADATA").write_text(metadata)
    found = inspect(tmp_path / "deep", deep=True)
    assert found.steps[0].missing == []
    assert found.parameters_total == 120
    assert found.parameters["projections"].norm == pytest.approx(math.sqrt(2 * sum(i * i for i in range(60))))


def test_deep_finds_what_is_not_finite(tmp_path: Path) -> None:
    good, bad = np.ones(8, np.float32), np.array([1, np.nan, np.inf, -np.inf, 2], ml_dtypes.bfloat16)
    write_step(
        tmp_path / "1",
        {"action_in_proj/bias": good, "PaliGemma/img/pos_embedding": bad},
        ["action_in_proj/bias"],
    )
    found = inspect(tmp_path, deep=True)
    assert {name: group.non_finite for name, group in found.parameters.items()} == {
        "vision": 3,
        "projections": 0,
    }
    assert found.parameters["vision"].norm == pytest.approx(math.sqrt(5))
    assert found.non_finite == 3
    assert "PaliGemma/img/pos_embedding" in found.findings[0]


def test_deep_norms_equal_what_openpi_saved(tmp_path: Path) -> None:
    root = openpi_checkpoint("lora", tmp_path)
    found = inspect(root, deep=True)
    base = (root / str(STEP["lora"]) / "params").as_uri() + "/"
    squares: dict[str, float] = {}
    for key in ts.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result():
        name = key.decode().partition("/")[0]
        if key.endswith(b"/.zarray"):
            values = (
                ts.open({"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}})
                .result()
                .read()
                .result()
            )
            group = group_of(name.removeprefix("params.").replace(".", "/"))
            squares[group] = squares.get(group, 0.0) + float((np.asarray(values, np.float64) ** 2).sum())
    assert {name: group.norm for name, group in found.parameters.items()} == pytest.approx(
        {name: math.sqrt(total) for name, total in squares.items()}
    )
    assert found.non_finite == 0


def test_deep_names_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    root = openpi_checkpoint("full", tmp_path)
    max((root / str(STEP["full"]) / "params").rglob("d/*"), key=lambda file: file.stat().st_size).unlink()
    found = inspect(root, deep=True)
    assert found.partial is True
    assert any("cannot be read" in finding for finding in found.findings)
    assert None in {group.norm for group in found.parameters.values()}
