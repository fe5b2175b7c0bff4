"""Tests arrays in checkpoints made by a stranger: headers, chunks, codecs and shards.

None of them takes unlimited memory or ends in a traceback.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from harness.checkpoint import chunks
from harness.checkpoint.header import parse_header
from harness.checkpoint.inspect import inspect
from harness.checkpoint.leaves import open_leaves, read_leaves
from harness.checkpoint.packed import check_packed
from tests.support.ocdbt_writer import crc32c
from tests.support.strangers import HANG_S, a_step, code_of


def inspect_in_4_gb(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = f"ulimit -v 4000000; exec {sys.executable} -m harness.cli inspect {path} {' '.join(options)}"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=HANG_S * 4, check=False
    )


def zarr(tmp_path: Path, **changes: Any) -> Path:
    """An item of one array in plain files whose header is then another."""
    step = a_step(tmp_path)
    file = step / "params/params.action_in_proj.bias.value/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return step


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**35], "chunks": [2**35], "order": "F"},
        {"shape": [2**31], "chunks": [2**31], "order": "F"},
        {"shape": [40], "chunks": [2**33]},
        {"shape": [2**33], "chunks": [1]},
        {"shape": [2**63]},
        {"shape": [-1]},
        {"shape": [float("nan")]},
        {"shape": [1] * 40, "chunks": [1] * 40},
        {"shape": [True]},
        {"chunks": [0]},
        {"chunks": []},
        {"dtype": "|S99999999999"},
        {"dtype": [["a", "<f4"]]},
        {"dtype": "<M8[ns]"},
        {"zarr_format": 3},
        {"order": "X"},
        {"compressor": 5},
        {"dimension_separator": "../"},
    ],
)
def test_headers_that_no_array_of_a_model_has(tmp_path: Path, changes: dict[str, Any]) -> None:
    step = zarr(tmp_path, **changes)
    found = inspect(step, deep=True)
    assert not found.steps[0].complete
    assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-damaged"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"zarr_format": ' + "9" * 5000 + "}",
        "nul",
        "[]",
        "5",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_header_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_header(text.encode(), zarr3=False)


def test_one_chunk_of_32_gb_is_a_finding_and_no_abort(tmp_path: Path) -> None:
    step = zarr(tmp_path, shape=[2**35 // 4], chunks=[2**35 // 4], order="F", dtype="<f4", compressor=None)
    done = inspect_in_4_gb(step, "--deep")
    assert (done.returncode, "bad_alloc" in done.stderr, "Traceback" in done.stderr) == (1, False, False)
    assert "damaged zarr header" in done.stdout.replace("\n", "")


def packed(data: bytes, codec: str) -> bytes:
    if codec == "zstd":
        return pa.Codec("zstd").compress(data, asbytes=True)
    return struct.pack("<BBBBIII", 2, 1, 0, 1, len(data), len(data), 16 + len(data)) + data


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_a_chunk_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, codec: str
) -> None:
    step = zarr(tmp_path, shape=[40], chunks=[40], compressor={"id": codec})
    chunk = step / "params/params.action_in_proj.bias.value/0"
    chunk.write_bytes(packed(bytes(40), codec) if codec == "zstd" else chunk.read_bytes())
    assert inspect(step, deep=True).leaves[0].sha256 is not None
    bomb = packed(bytes(2**27), "zstd")
    # Frames follow one another: together these unpack to 12 GiB.
    chunk.write_bytes(
        bomb * 96 if codec == "zstd" else struct.pack("<BBBBIII", 2, 1, 0, 1, 2**31, 2**18, 40) + bytes(24)
    )
    found = inspect(step, deep=True)
    assert [leaf.sha256 for leaf in found.leaves] == [None]
    assert (
        code_of(
            lambda: list(
                read_leaves(
                    leaves := open_leaves(step / "params"),
                    {path: _struct(leaf) for path, leaf in leaves.items()},
                )
            )
        )
        == "checkpoint-damaged"
    )


def _struct(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zlib", "lzma"])
def test_codecs_that_orbax_does_not_write_are_not_unpacked(tmp_path: Path, codec: str) -> None:
    found = inspect(zarr(tmp_path, compressor={"id": codec}), deep=True)
    assert [leaf.sha256 for leaf in found.leaves] == [None]


def test_zstd_of_every_kind_of_block_is_bounded_from_its_headers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for data in (
        bytes(10**6),
        random.bytes(10**6),
        np.repeat(random.integers(0, 9, 10**5), 10).astype(np.uint8).tobytes(),
        b"",
        b"x",
    ):
        file = tmp_path / "frames"
        file.write_bytes(packed(data, "zstd") * 2)
        with file.open("rb") as opened:
            check_packed(opened, file.stat().st_size, "zstd", max(2 * len(data), 64))
        with file.open("rb") as opened, pytest.raises(ValueError, match=r"\w"):
            check_packed(opened, file.stat().st_size - 1, "zstd", max(2 * len(data), 64))


def zarr3_item(directory: Path, values: np.ndarray, chunk: list[int], codecs: list[dict[str, Any]]) -> Path:
    """A plain-file item of one array in zarr v3."""
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    spec = {
        "driver": "zarr3",
        "kvstore": f"file://{directory}/x/",
        "metadata": {"chunk_grid": grid, "codecs": codecs},
    }
    store = ts.open(spec, create=True, shape=values.shape, dtype=ts.dtype(values.dtype.name)).result()
    store.write(values).result()
    entry = {"key_metadata": [{"key": "x", "key_type": 2}], "value_metadata": {"value_type": "jax.Array"}}
    (directory / "_METADATA").write_text(
        json.dumps(
            {
                "tree_metadata": {"('x',)": entry},
                "use_zarr3": True,
                "store_array_data_equal_to_fill_value": True,
            }
        )
    )
    return directory


ZSTD = {"name": "zstd", "configuration": {"level": 1}}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
SHARDS = {"name": "sharding_indexed", "configuration": {"chunk_shape": [3, 4], "codecs": [LITTLE, ZSTD]}}


@pytest.mark.parametrize(
    ("chunk", "codecs"),
    [([6, 8], [SHARDS]), ([12, 16], [LITTLE, ZSTD]), ([5, 16], [LITTLE]), ([12, 16], [SHARDS])],
)
def test_zarr3_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: list[int], codecs: list[dict[str, Any]]
) -> None:
    values = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    item = zarr3_item(tmp_path / "params", values, chunk, codecs)
    expected = hashlib.sha256(values.tobytes()).hexdigest()
    assert [leaf.sha256 for leaf in inspect(item, deep=True).leaves] == [expected]
    for large in (chunks.LARGE_BYTES, 1):
        monkeypatch.setattr(chunks, "LARGE_BYTES", large)
        monkeypatch.setattr(chunks, "PIECE_BYTES", 64)
        (leaf,) = open_leaves(item).values()
        np.testing.assert_array_equal(chunks.read_array(leaf.store, np.dtype(np.float32)), values)
        assert [found.sha256 for found in inspect(item, deep=True).leaves] == [expected]


def test_a_shard_whose_chunks_unpack_to_too_much_is_refused(tmp_path: Path) -> None:
    item = zarr3_item(tmp_path / "params", np.ones((6, 8), np.float32), [6, 8], [SHARDS])
    bomb = packed(bytes(2**27), "zstd") * 8
    index = struct.pack("<QQ", 0, len(bomb)) * 4
    (item / "x/c/0/0").write_bytes(bomb + index + struct.pack("<I", crc32c(index)))
    assert [leaf.sha256 for leaf in inspect(item, deep=True).leaves] == [None]


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    cut=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    limit=st.integers(1, 200),
)
def test_slabs_follow_each_other_in_c_order_and_stay_small(
    shape: list[int], cut: list[int], limit: int
) -> None:
    values = np.arange(math.prod(shape)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_SLAB_BYTES", limit)
        slabs = [values[slab] for slab in chunks.c_order_slabs(tuple(shape), tuple(cut), 1)]
    assert np.array_equal(
        np.concatenate([slab.reshape(-1) for slab in slabs] or [np.zeros(0)]), values.reshape(-1)
    )
    assert all(slab.size <= limit for slab in slabs)


def test_a_sparse_chunk_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    step = zarr(tmp_path, shape=[40], chunks=[40], compressor=None)
    os.truncate(step / "params/params.action_in_proj.bias.value/0", 2**40)
    assert [leaf.sha256 for leaf in inspect(step, deep=True).leaves] == [None]
