"""Tests streamed saves: the arrays of any other save, in bounded memory, whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from harness.checkpoint import handlers, streamed
from harness.checkpoint.digests import digest, digest_of_parts
from harness.checkpoint.inspect import inspect
from harness.checkpoint.pieces import in_order, parts_in_order, piece
from harness.checkpoint.store import Store
from harness.errors import HarnessError
from harness.train.pause import Pause
from harness.units import MIB

SHAPES = {"llm/layers/w": (6, 8, 130), "table": (64, 257), "bias": (5,), "one": (1, 1)}


def _state(kind: str = "device", seed: int = 0) -> dict[str, jax.Array]:
    place = SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
    rng = np.random.default_rng(seed)
    made = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    # NaN payloads and negative zero are bits too.
    made["bias"][:4] = [np.nan, -0.0, np.inf, 1e-45]
    state = {path: jax.device_put(value, place) for path, value in made.items()}
    return state | {"half": jax.device_put(jnp.asarray(made["table"], jnp.bfloat16), place)}


def _save(store: Store, step: int, params: dict[str, jax.Array]) -> None:
    state = {"step": jnp.int32(step), "params": dict(params), "opt_state": ()}
    store.save(
        step, params=params, train_state=state, norm_stats_json="{}", asset_id="a", record={"step": step}
    )


def _saved(directory: Path, params: dict[str, jax.Array], *, streamed: bool) -> Path:
    store = Store(directory, keep_every_steps=1, streamed=streamed)
    _save(store, 1, params)
    store.close()
    return directory / "1"


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
@pytest.mark.parametrize("chunk_bytes", [4096, 64 * MIB])
def test_a_streamed_save_has_the_files_of_any_other(
    kind: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state lies, and how small the chunks are, changes nothing that a reader sees."""
    monkeypatch.setattr(handlers, "CHUNK_BYTES", chunk_bytes)
    params = _state(kind)
    usual = _saved(tmp_path / "usual", params, streamed=False)
    ours = _saved(tmp_path / "streamed", params, streamed=True)
    for name in ("harness/digests.json", "harness/record.json", "params/_METADATA", "train_state/_METADATA"):
        assert (ours / name).read_bytes() == (usual / name).read_bytes(), name
    for item in ("params", "train_state"):
        assert _arrays(ours / item) == _arrays(usual / item)
        described = [
            json.loads((step / item / "array_metadatas/process_0").read_text()) for step in (ours, usual)
        ]
        assert described[0] == described[1]
    with ocp.PyTreeCheckpointer() as reader:
        (tree,) = reader.restore(ours / "params").values()
    for path, value in params.items():
        node = tree
        for name in path.split("/"):
            node = node[name]
        assert np.asarray(node["value"]).tobytes() == np.asarray(value).tobytes()
    (step,) = inspect(tmp_path / "streamed", deep=True).steps
    assert step.complete


def _arrays(item: Path) -> dict[str, bytes]:
    """What the database of an item has under each key, unpacked by nobody: descriptions and chunks."""
    import tensorstore as ts

    held = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    return {key.decode(): held.read(key).result().value for key in held.list().result()}


def test_the_state_may_be_given_away_as_soon_as_a_streamed_save_returns(tmp_path: Path) -> None:
    store = Store(tmp_path, keep_every_steps=1, streamed=True)
    params = _state()
    before = {path: np.array(value) for path, value in params.items()}
    _save(store, 1, params)
    assert store.steps() == [1], "it is whole when `save` returns"
    for value in params.values():
        value.delete()
    structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in before.items()}
    state = {"step": jax.ShapeDtypeStruct((), jnp.int32), "params": structs, "opt_state": ()}
    found = store.restore(1, params=structs, train_state=state)
    store.close()
    assert all(np.asarray(found.params[path]).tobytes() == x.tobytes() for path, x in before.items())


def test_each_byte_that_is_written_is_told(tmp_path: Path) -> None:
    heard: list[tuple[int, int, int]] = []
    store = Store(tmp_path, keep_every_steps=1, streamed=True, told=lambda *given: heard.append(given))
    params = _state()
    _save(store, 1, params)
    store.close()
    arrays = 2 * sum(value.nbytes for value in params.values()) + 4
    assert {step for step, _, _ in heard} == {1}
    assert sum(count for _, count, _ in heard) == arrays
    (of,) = {of for _, _, of in heard}
    # Beside the arrays there are some lines of text.
    assert arrays <= of < arrays + 1000


def test_a_pause_says_how_far_it_is_once_in_ten_seconds() -> None:
    now, said = [100.0], []
    pause = Pause(said.append, lambda: now[0])
    for step in (4, 8):
        for _ in range(25):
            pause.wrote(step, 2**30, 25 * 2**30)
            now[0] += 1
    assert said == [
        f"saving step {step}: {done}.0 GiB of 25.0 GiB, training waits"
        for step in (4, 8)
        for done in (11, 21)
    ]


def test_few_chunks_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over both trees together, however many chunks there are."""
    monkeypatch.setattr(handlers, "CHUNK_BYTES", 4096)
    real, lock, now, most, count = streamed._write_chunk, threading.Lock(), [0], [0], [0]

    def counted(*given: object) -> int:
        with lock:
            now[0] += 1
            count[0] += 1
            most[0] = max(most[0], now[0])
        try:
            return real(*given)  # type: ignore[arg-type]
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(streamed, "_write_chunk", counted)
    _saved(tmp_path, _state(), streamed=True)
    assert count[0] > 10 * streamed._CHUNKS
    assert most[0] <= streamed._CHUNKS


def test_a_disk_that_fills_up_ends_a_streamed_save_at_once_and_leaves_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "CHUNK_BYTES", 4096)
    store = Store(tmp_path, keep_every_steps=1, streamed=True)
    _save(store, 1, _state())
    begun = []

    def fails(*given: object) -> None:
        begun.append(given)
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    monkeypatch.setattr(streamed, "_write_chunk", fails)
    with pytest.raises(HarnessError) as caught:
        _save(store, 2, _state())
    assert caught.value.code == "disk-full"
    assert store.steps() == [1]
    assert len(begun) < 100, "after the first failure no other chunk begins"
    monkeypatch.undo()
    _save(store, 2, _state())
    store.close()
    assert store.steps() == [1, 2]


def test_an_array_without_elements_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path, keep_every_steps=1, streamed=True)
    with pytest.raises(HarnessError) as caught:
        _save(store, 1, {"layer/empty": jnp.zeros((0, 3))})
    assert caught.value.code == "save-failed"
    assert "layer.empty" in caught.value.what
    assert store.steps() == []


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (4, 1, 9), (2, 3, 4, 5)])
@pytest.mark.parametrize("most", [1, 4, 24, 100, 10**6])
def test_parts_in_order_are_the_array_once(shape: tuple[int, ...], most: int) -> None:
    array = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)
    parts = list(in_order(shape, 4, most))
    read = [np.asarray(array)[part] for part in parts]
    assert b"".join(part.tobytes() for part in read) == np.asarray(array).tobytes()
    assert all(part.nbytes <= max(most, 4) for part in read)
    assert b"".join(x.tobytes() for x in parts_in_order(array, most)) == np.asarray(array).tobytes()


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_digests_of_parts_are_those_of_the_whole(kind: str) -> None:
    for value in _state(kind).values():
        assert digest_of_parts(value) == digest(value)
    assert digest_of_parts(np.arange(5)) == digest(np.arange(5))
    assert digest_of_parts(3) == digest(3)


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_a_piece_is_memory_of_its_own(kind: str) -> None:
    value = _state(kind)["table"]
    whole = np.array(value)
    found = [piece(value, (slice(start, start + 8), slice(0, 257))) for start in range(0, 64, 8)]
    assert not any(np.shares_memory(one, np.asarray(value)) for one in found)
    np.testing.assert_array_equal(np.concatenate(found), whole)


def test_each_chunk_of_an_array_over_several_devices_is_written_once() -> None:
    """Four devices: cut, held twice, and held by all. Of what several hold, each writes a share."""
    made = subprocess.run(
        [sys.executable, "-c", SHARES],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]


SHARES = """
import collections, tempfile
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from harness.checkpoint.digests import digest_of_parts, digest
from harness.checkpoint.store import Store
from harness.train.pause import Pause
from harness.checkpoint.streamed import own_chunks
from harness.checkpoint import handlers
handlers.CHUNK_BYTES = 1024
mesh = jax.make_mesh((2, 2), ("data", "fsdp"))
whole = {}
for kind in ("device", "pinned_host"):
    for spec in (P(), P("fsdp"), P(None, "fsdp"), P(("data", "fsdp"))):
        x = np.random.default_rng(0).normal(size=(8, 36)).astype(np.float32)
        value = jax.device_put(x, NamedSharding(mesh, spec, memory_kind=kind))
        seen, by = np.zeros(x.shape, int), collections.Counter()
        for read, there in own_chunks(value, (2, 6)):
            seen[there] += 1
            by[read.args[0].device] += 1
            np.testing.assert_array_equal(read(), x[there])
        assert (seen == 1).all()
        assert len(by) == 4, (kind, spec, by)
        assert digest_of_parts(value) == digest(x)
        whole[f"{kind}/{len(whole)}"] = value
whole["scalar"] = jax.device_put(np.float32(3), NamedSharding(mesh, P()))
with tempfile.TemporaryDirectory() as directory:
    store = Store(directory, keep_every_steps=1, streamed=True)
    state = {"params": {}, "opt_state": ()}
    store.save(1, params=whole, train_state={"step": np.int32(1), **state}, norm_stats_json="{}",
               asset_id="a", record={})
    structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for path, x in whole.items()}
    step = jax.ShapeDtypeStruct((), np.int32)
    found = store.restore(1, params=structs, train_state={"step": step, **state})
    store.close()
    for path, value in whole.items():
        np.testing.assert_array_equal(found.params[path], value)
        assert found.params[path].sharding == value.sharding
"""
