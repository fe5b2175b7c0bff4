"""Tests checkpoints made by a stranger.

None of their files leads outside, hangs, takes unlimited memory, or ends in a traceback.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
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
from harness.checkpoint.export import export_openpi
from harness.checkpoint.format import outside, parse_location
from harness.checkpoint.header import parse_header
from harness.checkpoint.inspect import inspect
from harness.checkpoint.item import read_item
from harness.checkpoint.leaves import open_leaves, read_leaves
from harness.checkpoint.locate import locate
from harness.checkpoint.packed import check_packed
from harness.checkpoint.store import Store
from harness.checkpoint.weights import directory_sha256, params_directories
from harness.errors import HarnessError
from harness.recipe.schema import Expert, Lora, Model
from harness.run.steps import BASE
from tests.support.item_writer import write_item, write_step
from tests.support.ocdbt_writer import crc32c, write_dag, write_loop, write_value_in
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint

# Far above what any of these takes; without its bound each never ends.
HANG_S = 30
SECRET = b"the private key of the person who looks"


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(HarnessError) as caught:
        call()
    return caught.value.code


def inspect_in_4_gb(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = f"ulimit -v 4000000; exec {sys.executable} -m harness.cli inspect {path} {' '.join(options)}"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=HANG_S * 4, check=False
    )


@pytest.mark.parametrize("write", [write_loop, write_dag])
def test_an_index_that_never_ends_is_damaged(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "params")
    start = time.monotonic()
    item = read_item(tmp_path / "params")
    assert item.damaged
    assert "index is damaged" in item.problems[0]
    assert code_of(lambda: open_leaves(tmp_path / "params")) == "checkpoint-damaged"
    assert inspect(tmp_path / "params").steps[0].complete is False
    assert time.monotonic() - start < HANG_S


@pytest.mark.parametrize(
    "target", [b"d/\0x", b"", b"d\\..\\x", b"../x", b"/etc/passwd", b"d/./x", b"d//x", b"a\nb"]
)
def test_both_readers_refuse_data_that_is_named_outside(tmp_path: Path, target: bytes) -> None:
    write_value_in(tmp_path / "params", target)
    step = inspect(tmp_path / "params", deep=True).steps[0]
    assert not step.complete
    assert "outside of the item" in step.missing[0]
    assert code_of(lambda: open_leaves(tmp_path / "params")) == "checkpoint-leads-out"


@pytest.mark.parametrize(
    "text",
    ["", "a:b", "btreenode::d/x:0:-1", "btreenode::d/x:x:1", f"btreenode::d/x:{2**63}:1", "a:b:c:d:e:f"],
)
def test_no_location(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_location(text)


def test_escaped_dots_are_a_plain_name(tmp_path: Path) -> None:
    write_value_in(tmp_path / "params", b"%2e%2e/x")
    assert read_item(tmp_path / "params").problems == ["data file %2e%2e/x is missing"]


def a_step(tmp_path: Path, *, ocdbt: bool = False) -> Path:
    write_item(
        tmp_path / "7/params",
        {"params/action_in_proj/bias/value": np.arange(40, dtype=np.uint8)},
        ocdbt=ocdbt,
    )
    return tmp_path / "7"


def test_a_chunk_that_is_a_link_out_is_read_by_nobody(tmp_path: Path) -> None:
    step = a_step(tmp_path)
    chunk = step / "params/params.action_in_proj.bias.value/0"
    (tmp_path / "secret").write_bytes(SECRET)
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    found = inspect(step, deep=True)
    assert found.steps[0].complete is False
    assert [leaf.sha256 for leaf in found.leaves] == [None]
    assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-leads-out"
    assert code_of(lambda: directory_sha256(step / "params")) == "checkpoint-leads-out"
    assert code_of(lambda: locate(str(step))) == "checkpoint-interrupted"


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("kind", ["fifo", "device", "link out", "loop"])
@pytest.mark.parametrize(
    "name",
    [
        "params/_METADATA",
        "params/more",
        "_CHECKPOINT_METADATA",
        "harness/record.json",
        "harness/digests.json",
        "harness/base.json",
    ],
)
def test_special_files_and_links_are_named_and_not_opened(
    tmp_path: Path, name: str, kind: str, ocdbt: bool
) -> None:
    step = a_step(tmp_path, ocdbt=ocdbt)
    (step / "harness").mkdir()
    (step / "harness/record.json").write_text("{}")
    place = step / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    else:
        (tmp_path / "outside").write_text('{"commit_timestamp_nsecs": 1, "item_handlers": {}}')
        place.symlink_to({"device": "/dev/zero", "link out": tmp_path / "outside", "loop": place}[kind])
    start = time.monotonic()
    found = inspect(step, deep=True)
    assert not found.steps[0].complete or found.partial
    assert code_of(lambda: locate(str(step))) == "checkpoint-interrupted"
    if name.startswith("params"):
        assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-leads-out"
    assert time.monotonic() - start < HANG_S


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


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{}",
        '{"source": 5, "sha256": "x"}',
        "null",
        '{"source": "a\\u0000b", "sha256": "x"}',
        "\x00\xff",
    ],
)
def test_a_base_that_is_none(tmp_path: Path, text: str) -> None:
    step = a_step(tmp_path)
    (step / "harness").mkdir()
    (step / BASE).write_text(text)
    assert code_of(lambda: params_directories(step)) == "checkpoint-damaged"
    assert inspect(step).base is None


def test_a_base_that_names_itself(tmp_path: Path) -> None:
    step = a_step(tmp_path)
    (step / "harness").mkdir()
    (step / BASE).write_text(json.dumps({"source": str(step), "sha256": directory_sha256(step / "params")}))
    assert code_of(lambda: params_directories(step)) == "weights-base-circular"


@pytest.mark.parametrize(
    "change",
    [
        {"tree_metadata": [[]]},
        {"tree_metadata": {"a": {"key_metadata": [{"key": {}}], "value_metadata": {"value_type": "x"}}}},
        [],
    ],
)
def test_metadata_of_another_form(tmp_path: Path, change: Any) -> None:
    step = a_step(tmp_path)
    (step / "params/_METADATA").write_text(json.dumps(change))
    assert not inspect(step, deep=True).steps[0].complete
    assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-damaged"


def test_digests_that_name_a_file_outside_are_damaged(tmp_path: Path) -> None:
    from harness.checkpoint.digests import read_digests

    step = a_step(tmp_path)
    (step / "harness").mkdir()
    for name in ("/etc/hostname", "../secret", "a\0"):
        (step / "harness/digests.json").write_text(json.dumps({"leaves": {}, "files": {name: "0" * 64}}))
        assert code_of(lambda: read_digests(step)) == "checkpoint-damaged"


def lora_model() -> Model:
    expert = Expert(variant="dummy", lora=Lora(rank=4, alpha=4))
    return Model(paligemma=expert, action_expert=expert, vision="mu/14", vocab_size=512, prompt_tokens=16)


@pytest.mark.parametrize("what", ["directory", "file", "fifo", "assets"])
def test_an_export_carries_nothing_that_leaves_the_step(tmp_path: Path, what: str) -> None:
    step = openpi_checkpoint("lora", tmp_path) / str(STEP["lora"])
    home = tmp_path / "home/.ssh"
    home.mkdir(parents=True)
    (home / "id_ed25519").write_bytes(SECRET)
    if what == "assets":
        shutil.rmtree(step / "assets")
        (step / "assets").symlink_to(home)
    elif what == "fifo":
        os.mkfifo(step / "assets/pipe")
    else:
        (step / "assets/norm").symlink_to(home if what == "directory" else home / "id_ed25519")
    assert code_of(lambda: export_openpi(step, tmp_path / "out", model=lora_model())) in (
        "checkpoint-leads-out",
        "file-leaves-root",
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_an_export_removes_nothing_of_anybody_else(tmp_path: Path) -> None:
    step = openpi_checkpoint("lora", tmp_path) / str(STEP["lora"])
    kept = tmp_path / "out.orbax-checkpoint-tmp/mine"
    kept.parent.mkdir()
    kept.write_text("keep")
    export_openpi(step, tmp_path / "out", model=lora_model())
    assert kept.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == [
        "out",
        "out.orbax-checkpoint-tmp",
    ]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert code_of(lambda: export_openpi(step, tmp_path / "dangling", model=lora_model())) == "export-exists"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_store_never_touches_the_run_beside_it(tmp_path: Path) -> None:
    theirs = tmp_path / "best/checkpoints"
    write_step(theirs / "3", {"action_in_proj/bias": np.ones(2, np.float32)})
    (tmp_path / "received").mkdir()
    (tmp_path / "received/checkpoints").symlink_to("../best/checkpoints")
    store = Store(tmp_path / "received/checkpoints", keep_every_steps=1000)
    before = sorted(theirs.rglob("*"))
    assert code_of(store.steps) == "file-leaves-root"
    assert code_of(store.latest) == "file-leaves-root"
    save = {"params": {}, "train_state": {}, "norm_stats_json": "{}", "asset_id": "a", "record": {}}
    assert code_of(lambda: store.save(4, **save)) == "file-leaves-root"
    assert sorted(theirs.rglob("*")) == before


def test_an_item_that_is_a_link_to_another_run_is_not_restored(tmp_path: Path) -> None:
    step = tmp_path / "run/checkpoints/3"
    write_step(step, {"action_in_proj/bias": np.ones(2, np.float32)}, ["action_in_proj/bias"])
    (step / "harness").mkdir()
    (step / "harness/record.json").write_text("{}")
    (step / "params").rename(tmp_path / "theirs")
    (step / "params").symlink_to(tmp_path / "theirs")
    store = Store(step.parent, keep_every_steps=1)
    assert store.steps() == [3]
    assert code_of(lambda: store.restore(3, params={}, train_state={})) == "file-leaves-root"


def test_pruning_leaves_links_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("keep")
    checkpoints = tmp_path / "run/checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("1", "1.orbax-checkpoint-tmp-deleted-1", "x.orbax-checkpoint-tmp-deleted-1"):
        (checkpoints / name).symlink_to(tmp_path / "mine")
    Store(checkpoints, keep_every_steps=1000)._prune()
    assert len(list(checkpoints.iterdir())) == 3
    assert (tmp_path / "mine/file").read_text() == "keep"


@pytest.mark.parametrize("asset_id", ["/tmp/x", "../../x", "", "a/../..", "a\0", "a//b", "~/x"])
def test_statistics_are_saved_below_the_step_only(tmp_path: Path, asset_id: str) -> None:
    store = Store(tmp_path / "checkpoints", keep_every_steps=1)
    save = {"params": {}, "train_state": {}, "norm_stats_json": "{}", "asset_id": asset_id, "record": {}}
    assert code_of(lambda: store.save(1, **save)) == "name-leads-out"
    assert outside(asset_id)
    assert not (tmp_path / "checkpoints").exists()


def test_a_linked_interrupted_save_is_not_deleted(tmp_path: Path) -> None:
    from harness.checkpoint.scan import delete_interrupted

    write_step(tmp_path / "c/1", {"action_in_proj/bias": np.ones(2, np.float32)})
    (tmp_path / "c/2.orbax-checkpoint-tmp").symlink_to("1")
    found = inspect(tmp_path / "c")
    assert (found.interrupted, delete_interrupted(found)) == ([], [])
    assert (tmp_path / "c/1/params").is_dir()
