"""Tests that an export's file is the one that is made from whole leaves, however its blocks are cut."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pytest

from harness.checkpoint import blocks, chunks, export, sink
from harness.checkpoint.blocks import Want, spans
from harness.checkpoint.locate import locate
from harness.checkpoint.merge import arrays, open_merging
from harness.checkpoint.pytorch_names import PREFIX, UNUSED_HEAD, parts_of, turned
from harness.checkpoint.rows import rows_of, unit_of
from harness.checkpoint.stored import Stored
from harness.checkpoint.tensor_writer import cast
from harness.errors import HarnessError
from harness.predict.deliver import Wish, deliver
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe
from tests.support.exported import recipe_of_kind, seeded, write_checkpoint


def small(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, block_bytes: int) -> None:
    """Cuts chunks, blocks and buffers of these sizes, so that tiny leaves have many of each."""
    monkeypatch.setattr(export, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(chunks, "STREAMED_BYTES", 0)
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1000)
    monkeypatch.setattr(chunks, "_RANGE_BYTES", 100)
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(blocks, "_MEMORY_BYTES", block_bytes)
    monkeypatch.setattr(sink, "_BLOCK_BYTES", 20_000)


def in_one_chunk(step: Path, recipe: Recipe) -> None:
    """Writes the parameters again as Orbax does, each leaf in one chunk."""
    tree: dict[str, object] = {}
    for path, value in seeded(recipe).items():
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})  # type: ignore[assignment]
        node[last] = {"value": value}
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(step / "params", {"params": tree}, force=True)


@pytest.mark.parametrize(
    ("chunk_bytes", "block_bytes"), [(700, 900), (40_000, 3000), (0, 5000), (10**6, 10**6)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_file_and_its_digest_are_those_of_whole_leaves(
    kind: str, dtype: str, chunk_bytes: int, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_kind(kind)
    monkeypatch.setattr(export, "CHUNK_BYTES", chunk_bytes or 10**6)
    step = write_checkpoint(tmp_path / "5", recipe)
    if not chunk_bytes:
        in_one_chunk(step, recipe)
    opened = open_merging(step, recipe.model)
    prefix, expected = PREFIX["lerobot"], b""
    parts = parts_of(opened.shapes)
    # Leaf by leaf, through tensorstore, cast by it as well.
    for path, array in arrays(opened, list(parts)):
        expected += b"".join(cast(turned(array, part), np.dtype(dtype)).tobytes() for part in parts[path])

    small(monkeypatch, chunk_bytes, block_bytes)
    deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot", dtype), lambda _: None)

    data = (tmp_path / "out/model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    head = header[prefix + UNUSED_HEAD]["data_offsets"]
    assert (head[0], start + head[1]) == (len(expected), len(data))
    assert data[start : start + head[0]] == expected
    assert not any(data[start + head[0] :])
    names = [f"{prefix}{part.name}" for each in parts.values() for part in each]
    assert list(header) == ["__metadata__", *names, prefix + UNUSED_HEAD]
    digest = hashlib.sha256(data).hexdigest()
    written = json.loads((tmp_path / "out/harness/export.json").read_text())
    assert written["files"]["model.safetensors"]["sha256"] == digest
    assert digest in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("block_bytes", [1, 4000])
def test_blocks_have_a_few_buffers_that_are_used_again(
    block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 700, block_bytes)
    recipe = recipe_of_kind("full")
    opened = open_merging(write_checkpoint(tmp_path / "5", recipe), recipe.model)
    expected = dict(arrays(opened))
    made: list[int] = []
    make = blocks._memory

    def counted(free: list[np.ndarray], nbytes: int) -> np.ndarray:
        memory = make(free, nbytes)
        made.append(memory.ctypes.data)
        return memory

    monkeypatch.setattr(blocks, "_memory", counted)
    parts = parts_of(opened.shapes)
    found: dict[str, list[np.ndarray]] = {}
    for block in blocks.blocks(
        opened, [Want(path, unit_of(each, opened.shapes[path])) for path, each in parts.items()]
    ):
        assert sum(each.size for each in found.get(block.path, [])) == block.start
        found.setdefault(block.path, []).append(block.values.copy())
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(np.concatenate(found[path]), array.reshape(-1))
    assert len(made) > len(parts)
    assert len(set(made)) < len(made) / 2


def test_leaves_that_come_whole_are_freed_before_the_next_ones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_kind("full")
    deliver(
        locate(str(write_checkpoint(tmp_path / "5", recipe))), recipe, tmp_path / "a", Wish("lerobot"), print
    )
    alive: dict[int, int] = {}
    largest = most = together = 0
    make = blocks.whole

    def watched(*arguments: Any) -> np.ndarray:
        nonlocal largest, most, together
        array = make(*arguments)
        alive[id(array)] = array.nbytes
        weakref.finalize(array, alive.pop, id(array))
        largest, most = max(largest, array.nbytes), max(most, sum(alive.values()))
        together = max(together, len(alive))
        return array

    monkeypatch.setattr(blocks, "whole", watched)
    deliver(locate(str(tmp_path / "a")), recipe, tmp_path / "b", Wish("lerobot"), print)
    assert together > 1
    assert largest <= most <= 1.5 * largest
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_number_that_is_not_finite_is_told_from_a_block_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 700, 900)
    recipe = recipe_of_kind("full")
    params = seeded(recipe)
    params["PaliGemma/llm/layers/mlp/linear"][2, 5, 7] = np.nan
    step = write_checkpoint(tmp_path / "5", recipe, params=params)
    with pytest.raises(HarnessError) as caught:
        deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot"), lambda _: None)
    assert caught.value.code == "weights-not-finite"
    assert "PaliGemma/llm/layers/mlp/linear" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_a_stream_that_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 700, 900)
    recipe = recipe_of_kind("full")
    step = write_checkpoint(tmp_path / "5", recipe)
    short = chunks._Chunk.read
    monkeypatch.setattr(chunks._Chunk, "read", lambda self, size=-1: short(self, size)[:-1])
    with pytest.raises(HarnessError) as caught:
        deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot"), lambda _: None)
    assert caught.value.code == "checkpoint-damaged"
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_blocks_of_the_real_model_are_small_and_of_whole_tensors_and_chunks(tmp_path: Path) -> None:
    model = load_recipe("pi05_libero").model
    shapes = parameter_shapes(model)
    for path, parts in parts_of(shapes).items():
        shape = shapes[path]
        if 4 * math.prod(shape) <= chunks.STREAMED_BYTES:
            continue
        for chunk in (export.chunk_shape(shape, 4), shape):
            store = a_store(tmp_path, shape, chunk)
            unit = unit_of(parts, shape)
            found = spans(store, unit)
            assert found[0][0] == 0
            assert found[-1][1] == math.prod(shape)
            assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(found))
            assert all(start % unit == 0 for start, _ in found)
            assert 4 * max(stop - start for start, stop in found) <= blocks._MEMORY_BYTES, path


def a_store(folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...]) -> Stored:
    """An array of this shape in these chunks, of which none is there."""
    import tensorstore as ts

    from harness.checkpoint.header import Header

    store = ts.open(
        {"driver": "zarr", "kvstore": "memory://", "metadata": {"chunks": list(chunk)}},
        create=True,
        dtype=ts.float32,
        shape=shape,
    ).result()
    header = Header(shape, "float32", False, chunk, None, "zstd", True, ".", "")
    return Stored(store, header, folder, {})


@pytest.mark.parametrize("last", [2, 3, 5])
def test_a_chunk_is_unpacked_no_further_than_to_a_chunks_size(last: int, tmp_path: Path) -> None:
    """A chunk at the array's edge is stored whole: 5 rows in chunks of 3. More than 3 rows are no chunk."""
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    opened = a_store(tmp_path, (5, 4), (3, 4))
    packed = {
        (n, 0): pa.Codec("zstd").compress(values[3 * n : 3 * n + count].tobytes(), asbytes=True)
        for n, count in enumerate((3, last))
    }
    store = Stored(opened.store, opened.header, tmp_path, packed)
    out = np.empty(20, np.float32)
    read = blocks._runs(store)
    if last > 3:
        with pytest.raises(ValueError, match="a chunk of 48 bytes unpacks to at least 80"):
            read(0, out)
    else:
        read(0, out)
        np.testing.assert_array_equal(out, values.reshape(-1)[:20])


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_rows_are_rounded_to_the_nearest_as_tensorstore_rounds(axes: tuple[int, int]) -> None:
    from harness.checkpoint.pytorch_names import Part

    high = np.arange(2**16, dtype=np.uint32) << 16
    bits = np.concatenate([high | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, 1).astype(np.float32).reshape(768, 512)
    part = Part("w", (), axes, tuple(values.shape[axis] for axis in axes))
    ((_, rows),) = rows_of([part], values.shape, 0, values.reshape(-1))
    out = np.empty((rows.height, rows.width), ml_dtypes.bfloat16)
    for start in range(0, rows.height, 100_001):
        rows.fill(start, min(start + 100_001, rows.height), out[start : start + 100_001])
    expected = cast(np.ascontiguousarray(values.transpose(axes)), np.dtype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(out.reshape(-1).view(np.uint16), expected.reshape(-1).view(np.uint16))
