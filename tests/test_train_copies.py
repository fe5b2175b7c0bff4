"""Tests the copies of parameters in host memory: who makes them, who reads them, and who leaves them out."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.checkpoint.store import Store
from harness.recipe.parameters import EMBEDDING, is_cast_before_use
from harness.train import host
from harness.train.held_out_fill import _deployed
from harness.train.held_out_program import deployed
from harness.train.phases import compile_phase
from harness.train.setup import Setup, setup_of
from harness.train.sharding import Layout
from harness.train.snapshot import restore, save
from harness.train.start import random_state, surround
from harness.train.state import TrainState
from tests.support.learned import LEARNS, compiled, learned, without_copies
from tests.support.tiny import random_batch, random_params, tiny

EVERYTHING = ("ema", "moments", "masters")
BFLOAT16 = "model.compute_dtype=bfloat16"


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's leaves are cut as the real ones are, into many pieces."""
    monkeypatch.setattr(host, "_PIECE", 2**12)


def setup_with(*overrides: str, in_host: tuple[str, ...] = EVERYTHING) -> Setup:
    return setup_of(tiny(*LEARNS, BFLOAT16, *overrides), Layout(jax.local_devices()[:1], host=in_host))


def loaded(setup: Setup) -> TrainState:
    """The state around the parameters as a reader of weights leaves them."""
    structs = setup.layout.structs(setup.shapes.params)
    return surround(
        {
            path: jax.device_put(jnp.asarray(x, structs[path].dtype), structs[path].sharding)
            for path, x in random_params(setup.recipe).items()
        },
        setup,
    )


def test_an_update_writes_the_copies_that_the_next_step_reads() -> None:
    """In bfloat16: of each parameter in host memory but the table, and all of them have moved."""
    given = (*LEARNS, BFLOAT16)
    begun = jax.device_get(compiled(given, EVERYTHING).begin())
    state, _ = learned(given, in_host=EVERYTHING)
    assert state.copies.keys() == {
        path for path, x in state.trained.items() if x.size >= host.SMALLEST and path != EMBEDDING
    }
    for path, copy in state.copies.items():
        assert copy.dtype == (jnp.bfloat16 if is_cast_before_use(path) else jnp.float32)
        assert (copy != begun.copies[path]).any(), path
    for each in (begun, state):
        without_copies(each)


def test_a_step_reads_no_parameter_in_host_memory_before_it_has_the_gradients() -> None:
    """But the table, whose rows it looks up. What computes the gradients reads the copies."""
    program = compiled(LEARNS, EVERYTHING)
    state = program.begin()
    jaxpr = program.step.trace(state, random_batch(program.recipe), jax.random.key(5)).jaxpr.jaxpr
    paths = [jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(state)]
    variables = dict(zip(paths, jaxpr.invars[: len(paths)], strict=True))

    def first_use(part: str, path: str) -> int:
        variable = variables[f".{part}['{path}']"]
        return next(i for i, one in enumerate(jaxpr.eqns) if any(x is variable for x in one.invars))

    gradients = {first_use("copies", path) for path in state.copies}
    assert len(gradients) == 1
    assert min(first_use("trained", path) for path in state.copies) > max(gradients)
    assert first_use("trained", EMBEDDING) < min(gradients)


@pytest.mark.parametrize("made", ["loaded", "at random"])
def test_a_first_state_has_the_copies_of_its_parameters(made: str) -> None:
    setup = setup_with()
    state = loaded(setup) if made == "loaded" else random_state(setup, jax.random.key(0))
    places = setup.layout.of(setup.shapes.state)
    assert jax.tree.map(lambda x: x.sharding, state) == places
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, setup.shapes.state)
    assert state.copies
    without_copies(jax.device_get(state))


def test_phases_hold_the_copies_and_a_save_writes_none() -> None:
    copied, plain = setup_with(), setup_with(in_host=())
    state = copied.shapes.state
    places = jax.tree.leaves(copied.layout.of(state))
    held = sum(
        x.size * x.dtype.itemsize
        for x, place in zip(jax.tree.leaves(state), places, strict=True)
        if place.memory_kind != host.PINNED
    )
    copies = sum(x.size * x.dtype.itemsize for x in state.copies.values())
    saving, whole = compile_phase(copied, "save"), compile_phase(plain, "save")
    assert copies > held / 2
    assert saving.bytes["device"] == held
    assert (saving.host_bytes, saving.disk_bytes) == (whole.host_bytes, whole.disk_bytes)
    assert compile_phase(copied, "init").bytes["device"] >= held


def test_a_held_out_pass_reads_the_copies_where_there_is_no_average(tmp_path: Path) -> None:
    """In the run, and afterwards from a save on the disk."""
    setup = setup_with("train.ema_decay=null", in_host=("moments", "masters"))
    state = loaded(setup)
    store = Store(tmp_path, keep_every_steps=1)
    record = {"recipe_sha256": setup.recipe.sha256()}
    save(store, state, step=1, norm_stats_json="{}", asset_id="a", record=record)
    store.wait()
    read, _ = deployed(state)
    assert [path for path, x in read.items() if x.sharding.memory_kind == host.PINNED] == [EMBEDDING]
    for other in (deployed(restore(store, setup, 1)), _deployed(setup, tmp_path / "1")):
        for (keys, a), b in zip(
            jax.tree_util.tree_leaves_with_path(deployed(state)), jax.tree.leaves(other), strict=True
        ):
            assert (a.dtype, a.sharding.memory_kind) == (b.dtype, b.sharding.memory_kind), keys
            np.testing.assert_array_equal(a, b, err_msg=str(keys))
    store.close()
