"""Tests arrays whose chunks are read as streams into their places."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from harness.checkpoint import chunks, export
from harness.checkpoint.export import write_params
from harness.checkpoint.leaves import open_leaves

SHAPES = [(7, 3, 40, 11), (900,), (1, 600), (20, 16), (3, 1, 5, 1), (2, 257, 3)]


@pytest.mark.parametrize("chunk_bytes", [40, 300, 2000, 10**6])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_of_any_grid_are_read_to_their_places(
    chunk_bytes: int, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {
        str(n): np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for n, shape in enumerate(SHAPES)
    }
    monkeypatch.setattr(export, "CHUNK_BYTES", chunk_bytes)
    write_params(tmp_path / "params", arrays.items())
    monkeypatch.setattr(chunks, "STREAMED_BYTES", 0)
    monkeypatch.setattr(chunks, "_RANGE_BYTES", 64)
    monkeypatch.setattr(chunks, "PIECE_BYTES", 128)
    # The way of other grids gives nothing here.
    monkeypatch.setattr(chunks, "_read_slabs", lambda *_: pytest.fail("read slab by slab"))
    leaves = open_leaves(tmp_path / "params")
    grids = set()
    for name, array in arrays.items():
        leaf = leaves[f"params/{name}/value"]
        grids.add(leaf.store.header.grid)  # type: ignore[union-attr]
        np.testing.assert_array_equal(leaf.read(np.dtype(dtype)), array.astype(dtype), err_msg=name)
    assert chunk_bytes > 10**5 or any(math.prod(grid) > 1 for grid in grids)


def test_a_chunk_of_a_grid_that_ends_early_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHUNK_BYTES", 4000)
    write_params(tmp_path / "params", [("w", np.random.default_rng(0).random((40, 100), np.float32))])
    leaf = open_leaves(tmp_path / "params")["params/w/value"]
    monkeypatch.setattr(chunks, "STREAMED_BYTES", 0)
    short = chunks._Chunk.read
    monkeypatch.setattr(chunks._Chunk, "read", lambda self, size=-1: short(self, size)[:-8])
    with pytest.raises((ValueError, OSError)):
        leaf.read()
