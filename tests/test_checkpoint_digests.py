"""Tests the sha256 of every leaf and text of a checkpoint.

A leaf or text that has changed since the save is never restored.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore as ts

from harness.checkpoint import digests as digests_module
from harness.checkpoint.digests import DIGESTS, digest, read_digests
from harness.checkpoint.store import Restored, Store
from harness.errors import HarnessError
from harness.run.steps import RECORD
from tests.support.mutation import damage

STEP = 3
PARAMS = {
    "PaliGemma/llm/layers/attn/q_einsum/w": jax.random.normal(jax.random.key(0), (4, 8, 16)),
    "PaliGemma/llm/layers/mlp/linear": jax.random.normal(jax.random.key(1), (130, 7)).astype(jnp.bfloat16),
    "action_in_proj/bias": jnp.arange(5.0),
}
STATE = {"step": jnp.int32(STEP), "params": PARAMS, "opt_state": optax.adamw(1e-3).init(PARAMS)}


def save_step(directory: Path) -> None:
    """Saves STEP of PARAMS and STATE as a run does."""
    store = Store(directory, keep_every_steps=1)
    store.save(
        STEP,
        params=PARAMS,
        train_state=STATE,
        norm_stats_json='{"norm_stats": {}}',
        asset_id="lab/libero",
        record={"position": 17},
    )
    store.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    save_step(directory)
    return directory


def structs(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def restore(directory: Path) -> Restored:
    store = Store(directory, keep_every_steps=1)
    try:
        return store.restore(STEP, params=structs(PARAMS), train_state=structs(STATE))
    finally:
        store.close()


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_every_leaf_and_text_has_a_digest_of_its_own_bytes(saved: Path) -> None:
    found = read_digests(saved / str(STEP))
    assert found is not None
    assert len(found.leaves) == len(jax.tree.leaves((PARAMS, STATE)))
    expected = digest(np.asarray(PARAMS["PaliGemma/llm/layers/mlp/linear"]))
    assert found.leaves["params/params/PaliGemma/llm/layers/mlp/linear/value"] == expected
    assert found.leaves["train_state/opt_state/0/mu/action_in_proj/bias/value"] == digest(
        np.zeros(5, np.float32)
    )
    assert set(found.files) == {RECORD, "assets/lab/libero/norm_stats.json"}


def test_slices_of_a_large_leaf_make_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = jax.random.normal(jax.random.key(3), (7, 5, 3))
    whole = digest(leaf)
    monkeypatch.setattr(digests_module, "_SLICE_BYTES", 2 * 5 * 3 * 4)
    assert digest(leaf) == whole == digest(np.asfortranarray(leaf))


def test_other_values_that_read_well_are_refused(saved: Path, tmp_path: Path) -> None:
    """Orbax's own restore takes them without a word: nothing but the digest can tell."""
    copy = shutil.copytree(saved, tmp_path / "checkpoints")
    path = "params.PaliGemma.llm.layers.attn.q_einsum.w.value/"
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": (copy / str(STEP) / "params").as_uri() + "/", "path": path},
    }
    array = ts.open(spec, open=True).result()
    array[2, 3, 4].write(0.5).result()
    with pytest.raises(HarnessError) as caught:
        restore(copy)
    assert caught.value.code == "checkpoint-damaged"
    assert "q_einsum" in caught.value.what


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (RECORD, lambda text: text.replace("17", "18")),
        ("assets/lab/libero/norm_stats.json", lambda text: text + " "),
        (DIGESTS, lambda _: "{}"),
        (DIGESTS, lambda text: text.replace('"leaves"', '"leafs"')),
        (DIGESTS, lambda _: json.dumps({"leaves": {}, "files": {}})),
    ],
)
def test_a_changed_text_is_refused(name: str, change: Any, saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "checkpoints")
    path = copy / str(STEP) / name
    path.write_text(change(path.read_text()))
    with pytest.raises(HarnessError) as caught:
        restore(copy)
    assert caught.value.code == "checkpoint-damaged"


def test_a_step_without_a_sidecar_is_read_as_before(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "checkpoints")
    (copy / str(STEP) / DIGESTS).unlink()
    assert bits(restore(copy).train_state) == bits(STATE)


def outcome(directory: Path) -> str:
    """The code of the refusal, or "as saved", or "other data": what must never be."""
    try:
        found = restore(directory)
    except HarnessError as error:
        return error.code
    same = bits((found.params, found.train_state)) == bits((PARAMS, STATE)) and found.record == {
        "position": 17
    }
    return "as saved" if same else "other data"


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_passes_for_the_checkpoint(seed: int, saved: Path, tmp_path: Path) -> None:
    """Ten damages each; benchmarks/damage_checkpoints.py does ten thousand.

    Damage to what is not read leaves it as saved.
    """
    chance = random.Random(seed)
    for _ in range(10):
        copy = shutil.copytree(saved, tmp_path / "checkpoints")
        done = damage(copy, chance)
        assert outcome(copy) in (
            "as saved",
            "checkpoint-damaged",
            "checkpoint-missing",
            "checkpoint-mismatch",
            "checkpoint-leads-out",
        ), done
        shutil.rmtree(copy)


def test_a_step_whose_record_is_of_another_step_is_not_restored(tmp_path: Path) -> None:
    """As after a rename."""
    store = Store(tmp_path, keep_every_steps=1)
    store.save(STEP, params=PARAMS, train_state=STATE, norm_stats_json="{}", asset_id="x", record={"step": 2})
    store.close()
    with pytest.raises(HarnessError, match="holds another step than its name says") as caught:
        restore(tmp_path)
    assert caught.value.code == "checkpoint-mismatch"
