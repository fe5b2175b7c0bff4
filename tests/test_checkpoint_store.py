import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from harness.checkpoint import store as store_module
from harness.checkpoint.paths import leaf_paths, nested
from harness.checkpoint.store import Store
from harness.errors import HarnessError

STATS = '{"norm_stats": {}}'


def _state(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "PaliGemma/llm/layers/attn/q_einsum/w": jax.random.normal(keys[0], (4, 8, 16)),
        "PaliGemma/llm/layers/mlp/linear": jax.random.normal(keys[1], (130, 7)).astype(jnp.bfloat16),
        "action_in_proj/bias": jax.random.normal(keys[2], (5,)),
    }
    trained = {path: params[path] for path in ("PaliGemma/llm/layers/attn/q_einsum/w", "action_in_proj/bias")}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    train_state = {
        "step": jnp.int32(3),
        "params": {path: value * 2 for path, value in params.items()},
        "opt_state": optimizer.init(trained),
    }
    return params, train_state


def _structs(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def _save(store, step, params, train_state, **record):
    store.save(
        step,
        params=params,
        train_state=train_state,
        norm_stats_json=STATS,
        asset_id="lab/libero",
        record=record,
    )


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_restored_equals_saved_bit_for_bit(tmp_path):
    params, train_state = _state()
    # NaN payloads and negative zero are bits too.
    params["action_in_proj/bias"] = jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45, 3.0])
    store = Store(tmp_path, keep_every_steps=10)
    _save(store, 3, params, train_state, position=17)
    found = store.restore(3, params=_structs(params), train_state=_structs(train_state))
    store.close()
    _same_bits(found.params, params)
    _same_bits(found.train_state, train_state)
    assert found.record == {"position": 17}


def test_layout_is_openpis(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=10)
    _save(store, 3, params, train_state)
    store.close()
    assert {path.name for path in (tmp_path / "3").iterdir()} >= {
        "params",
        "train_state",
        "assets",
        "_CHECKPOINT_METADATA",
    }
    assert (tmp_path / "3/assets/lab/libero/norm_stats.json").read_text() == STATS
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(tmp_path / "3/params")
        state = reader.restore(tmp_path / "3/train_state")
    np.testing.assert_array_equal(
        tree["params"]["action_in_proj"]["bias"]["value"], params["action_in_proj/bias"]
    )
    assert state["step"] == 3
    assert set(state["opt_state"][1][0]["mu"]["PaliGemma"]["llm"]["layers"]["attn"]["q_einsum"]["w"]) == {
        "value"
    }


def test_donating_what_is_being_saved_does_not_change_it(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    params = {"a/w": jnp.zeros((1024, 1024))}
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, {"step": jnp.int32(1), "params": {}, "opt_state": ()})
    structs = _structs(params)
    live = params.pop("a/w")
    for _ in range(5):
        live = step(live)
    found = store.restore(
        1,
        params=structs,
        train_state={"step": jax.ShapeDtypeStruct((), jnp.int32), "params": {}, "opt_state": ()},
    )
    store.close()
    assert not np.asarray(found.params["a/w"]).any()


def test_restore_into_another_sharding(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    sharding = NamedSharding(jax.make_mesh((len(jax.devices()),), ("fsdp",)), PartitionSpec())
    structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for path, x in params.items()}
    found = store.restore(1, params=structs, train_state=_structs(train_state))
    store.close()
    assert all(value.sharding == sharding for value in found.params.values())
    _same_bits(found.params, params)


@pytest.mark.parametrize(
    ("keep_every", "keep_last", "kept"),
    [(4, 1, [4, 8, 9]), (100, 1, [9]), (100, 2, [8, 9]), (3, 1, [6, 9])],
)
def test_retention(tmp_path, keep_every, keep_last, kept):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=keep_every, keep_last=keep_last)
    for step in (2, 4, 6, 8, 9):
        _save(store, step, params, train_state)
    store.close()
    assert store.steps() == kept
    assert store.latest() == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, kept))


def test_every_difference_is_listed_at_once(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    asked = _structs(params)
    asked["new/w"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    asked["action_in_proj/bias"] = jax.ShapeDtypeStruct((6,), jnp.float32)
    asked["PaliGemma/llm/layers/mlp/linear"] = jax.ShapeDtypeStruct((130, 7), jnp.float32)
    del asked["PaliGemma/llm/layers/attn/q_einsum/w"]
    with pytest.raises(HarnessError) as caught:
        store.restore(1, params=asked, train_state=_structs(train_state))
    store.close()
    assert caught.value.code == "checkpoint-mismatch"
    assert caught.value.got.startswith("4 ")
    for name in ("new/w", "action_in_proj/bias", "mlp/linear", "q_einsum/w"):
        assert name in caught.value.what


def test_disk_full_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    store.wait()
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(HarnessError) as caught:
        _save(store, 2, params, train_state)
    store.close()
    assert caught.value.code == "disk-full"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_disk_that_fills_up_during_the_save_leaves_the_step_before(tmp_path, monkeypatch):
    """tensorstore calls that a lack of resources, as JAX calls a lack of device memory."""
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    store.wait()

    def fails():
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store._checkpointer, "wait_until_finished", fails)
        with pytest.raises(HarnessError) as caught:
            store.wait()
    store.close()
    assert caught.value.code == "disk-full"
    assert store.steps() == [1]


def test_saving_a_whole_step_again_is_refused(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    with pytest.raises(HarnessError) as caught:
        _save(store, 1, params, train_state)
    store.close()
    assert caught.value.code == "checkpoint-exists"


def test_missing_step(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path / "nothing", keep_every_steps=1)
    assert store.steps() == []
    assert store.latest() is None
    with pytest.raises(HarnessError) as caught:
        store.restore(1, params=_structs(params), train_state=_structs(train_state))
    store.close()
    assert caught.value.code == "checkpoint-missing"


def test_array_data_that_is_gone_is_an_error_and_not_zeros(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    store.wait()
    for path in (tmp_path / "1/params/ocdbt.process_0/d").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(HarnessError) as caught:
        store.restore(1, params=_structs(params), train_state=_structs(train_state))
    store.close()
    assert caught.value.code == "checkpoint-damaged"


CHILD = """
import sys, jax, jax.numpy as jnp
from harness.checkpoint.store import Store
store = Store(sys.argv[1], keep_every_steps=1, streamed=len(sys.argv) > 2)
def save(step, n):
    params = {f"layer{i}/w": jax.random.normal(jax.random.key(i), (n,)) for i in range(20)}
    store.save(step, params=params, train_state={"step": jnp.int32(step), "params": {}, "opt_state": ()},
               norm_stats_json="{}", asset_id="x", record={"step": step})
save(1, 1000)
store.wait()
print("saved", flush=True)
save(2, 2_000_000)
store.wait()
"""


@pytest.mark.parametrize("streamed", [False, True])
def test_kill_minus_nine_during_a_save_leaves_the_step_before(tmp_path, streamed):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), *(["streamed"] if streamed else [])],
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert child.stdout.readline() == b"saved\n"
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("2.orbax-checkpoint-tmp/params*/ocdbt.process_0/d/*")):
        assert time.monotonic() < deadline
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()

    assert [path.name for path in tmp_path.glob("2*")] == ["2.orbax-checkpoint-tmp"]
    store = Store(tmp_path, keep_every_steps=1, streamed=streamed)
    assert store.steps() == [1]
    structs = {f"layer{i}/w": jax.ShapeDtypeStruct((1000,), jnp.float32) for i in range(20)}
    state = {"step": jax.ShapeDtypeStruct((), jnp.int32), "params": {}, "opt_state": ()}
    found = store.restore(1, params=structs, train_state=state)
    _same_bits(
        found.params, {f"layer{i}/w": jax.random.normal(jax.random.key(i), (1000,)) for i in range(20)}
    )
    with pytest.raises(HarnessError, match="interrupted"):
        store.restore(2, params=structs, train_state=state)

    _save(store, 2, found.params, found.train_state)
    store.close()
    assert store.steps() == [1, 2]
    assert len(list(tmp_path.glob("2.orbax-checkpoint-tmp*"))) == 1, "the interrupted save was deleted"


def test_an_interrupted_save_renamed_by_hand_is_not_whole(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, train_state)
    store.close()
    (tmp_path / "1/params/_METADATA").unlink()
    assert store.steps() == []


def test_paths_of_a_flat_state_are_those_of_the_nested_one():
    _, train_state = _state()
    paths = leaf_paths(train_state)
    assert "params/action_in_proj/bias/value" in paths
    assert "opt_state/1/0/mu/action_in_proj/bias/value" in paths
    assert len(set(paths)) == len(jax.tree.leaves(train_state))
    assert nested({"a/b": 1, "a/c": 2}) == {"a": {"b": {"value": 1}, "c": {"value": 2}}}


def test_the_step_is_listed_only_when_it_is_whole(tmp_path):
    assert Store(tmp_path, keep_every_steps=1).steps() == []
    (tmp_path / "5").mkdir()
    (tmp_path / "6.orbax-checkpoint-tmp-0").mkdir()
    assert Store(Path(tmp_path), keep_every_steps=1).steps() == []


def test_a_clock_that_jumps_ahead_ends_no_save(tmp_path, monkeypatch):
    """Orbax measures its time-outs by the wall clock. Here a year passes while a save is under way."""
    params = {f"layer{i}/w": jax.random.normal(jax.random.key(i), (500_000,)) for i in range(12)}
    now, ahead = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: now() + ahead[0])
    store = Store(tmp_path, keep_every_steps=1)
    _save(store, 1, params, {"step": jnp.int32(1), "params": {}, "opt_state": ()})
    ahead[0] = 365 * 86_400
    store.close()
    assert store.steps() == [1]


def test_a_directory_that_may_not_be_written_any_more_is_told_and_the_step_before_stays(tmp_path):
    params, train_state = _state()
    store = Store(tmp_path / "run", keep_every_steps=1)
    _save(store, 1, params, train_state)
    store.wait()
    (tmp_path / "run").chmod(0o500)
    try:
        if os.access(tmp_path / "run", os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(HarnessError) as caught:
            _save(store, 2, params, train_state)
        assert caught.value.code == "not-writable"
    finally:
        (tmp_path / "run").chmod(0o700)
        store.close()
    assert store.steps() == [1]


@pytest.mark.parametrize(
    "raised", [MemoryError("no more"), RuntimeError("RESOURCE_EXHAUSTED: out of memory")]
)
def test_a_lack_of_memory_while_saving_is_not_taken_for_a_bad_disk(raised, tmp_path, monkeypatch):
    store = Store(tmp_path, keep_every_steps=1)

    def fails():
        raise raised

    monkeypatch.setattr(store._checkpointer, "wait_until_finished", fails)
    with pytest.raises(type(raised)):
        store.wait()
