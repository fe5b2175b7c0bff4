"""Laws of checkpoints over several devices: a run resumes on any number of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from harness.artifacts import Candidate, Memory
from harness.checkpoint.inspect import inspect
from harness.checkpoint.store import Store
from harness.data.dataset import describe
from harness.data.stats import compute
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir
from harness.run.job import Job
from harness.train.copies import copier
from harness.train.loop import train
from harness.train.setup import setup_of
from harness.train.sharding import SMALLEST
from harness.train.snapshot import restore, save
from harness.train.start import first_state
from harness.train.state import TrainState
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.planned import plan_of
from tests.support.sharded import (
    BATCH,
    FOUR,
    ONE,
    TOKENS,
    TWO_BY_TWO,
    Listener,
    assert_alike,
    check_shards,
    collectives,
    compiled,
    hosted,
    layout,
    learner,
    levers,
    three_steps,
)
from tests.support.tiny import random_batch


def saved(directory: str, recipe: Recipe, state: TrainState) -> Store:
    """A store that holds the state as its step 3; whoever asked closes it."""
    store = Store(directory, keep_every_steps=100)
    record = {"recipe_sha256": recipe.sha256()}
    save(store, state, step=3, norm_stats_json="{}", asset_id="sample", record=record)
    store.wait()
    return store


def law_shards_in_host_memory_train_like_one_device_and_come_back_from_a_checkpoint() -> None:
    recipe, (step, state, lines) = learner(), hosted()
    one, one_lines = three_steps((), 1, **ONE)
    assert_alike((one, one_lines), (state, lines))
    assert {
        x.sharding.memory_kind
        for tree in (state.ema, state.trained)
        for x in tree.values()
        if x.size >= SMALLEST
    } == {"pinned_host"}
    check_shards(state, 4)
    assert state.copies
    for path, copy in state.copies.items():
        assert copy.sharding.memory_kind == "device"
        assert copy.sharding.spec == state.trained[path].sharding.spec
    made = copier(state.copies, step.setup.layout).lower({path: state.trained[path] for path in state.copies})
    assert not collectives(made.compile().as_text()), "a device needs a part of another one's"
    with tempfile.TemporaryDirectory() as directory:
        store = saved(directory, recipe, state)
        for place in (step.setup.layout, layout(**ONE)):
            setup = setup_of(recipe, place)
            restored = restore(store, setup, 3)
            assert restored.copies.keys() == (state.copies.keys() if place.host else set())
            expected = state if place.host else state._replace(copies={})
            jax.tree.map(np.testing.assert_array_equal, restored, expected)
            assert jax.tree.map(lambda x: x.sharding, restored) == place.of(setup.shapes.state)
        store.close()


def law_weights_are_loaded_into_shards() -> None:
    with tempfile.TemporaryDirectory() as directory:
        source = openpi_checkpoint("full", Path(directory)) / "4" / "params"
        recipe = load_recipe("smoke", [f"weights.source={source}"])
        state, _ = first_state(setup_of(recipe, layout(**FOUR)), jax.random.key(0), Listener())
        check_shards(state, 4)
        one, _ = first_state(setup_of(recipe, layout(**ONE)), jax.random.key(0), Listener())
        jax.tree.map(np.testing.assert_array_equal, state, one)


def law_a_run_saved_on_any_number_of_devices_resumes_on_any_other() -> None:
    recipe = learner()
    meshes = (ONE, FOUR, TWO_BY_TWO)
    for saver in meshes:
        state = three_steps((), 2 if saver is FOUR else 1, **saver)[0]
        with tempfile.TemporaryDirectory() as directory:
            store = saved(directory, recipe, state)
            for reader in meshes:
                restored = restore(store, setup_of(recipe, layout(**reader)), 3)
                jax.tree.map(np.testing.assert_array_equal, restored, state)
                if reader["devices"] == 4:
                    check_shards(restored, reader["fsdp"])
            store.close()
            (step,) = inspect(Path(directory)).steps
            assert step.complete


def law_a_resumed_step_is_bitwise_the_step_that_went_on() -> None:
    recipe, step = learner(), compiled((), 2, **FOUR)
    key = jax.device_put(jax.random.key(5), step.setup.layout.replicated)
    batch = jax.device_put(random_batch(recipe, BATCH, TOKENS, seed=9), step.setup.layout.rows)
    with tempfile.TemporaryDirectory() as directory:
        state = jax.tree.map(jnp.copy, three_steps((), 2, **FOUR)[0])
        store = saved(directory, recipe, state)
        restored = restore(store, step.setup, 3)
        store.close()
        jax.tree.map(
            np.testing.assert_array_equal, step.run(state, batch, key), step.run(restored, batch, key)
        )


def law_a_run_goes_on_with_another_number_of_devices() -> None:
    """The whole loop, loader and all: two steps on four devices, a third on one, against three on one."""
    with tempfile.TemporaryDirectory() as directory:
        moved, stayed = Path(directory) / "moved", Path(directory) / "stayed"
        train_to(2, moved, accumulation_steps=2, **FOUR)
        memory = RunDir(moved).read(Memory)
        assert memory is not None
        assert (memory.devices, memory.step, memory.compiled) == (4, 2, compiled((), 2, **FOUR).bytes)
        train_to(3, moved, **ONE)
        train_to(3, stayed, **ONE)
        for a, b in zip(
            *(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) for run in (moved, stayed)),
            strict=True,
        ):
            for name in ("loss", "grad_norm", "param_norm"):
                assert abs(a[name] / b[name] - 1) <= 1e-6, (name, a, b)


def train_to(steps: int, run: Path, accumulation_steps: int = 1, **mesh: int) -> None:
    recipe = learner(f"train.steps={steps}", "train.save_every_steps=2")
    dataset = describe(recipe)
    chosen = Candidate(
        levers=levers(recipe, accumulation_steps, **mesh), verdict="fits", reason="", source="compiled"
    )
    plan = plan_of(chosen, "cpu")
    assert train(Job(RunDir(run), recipe, plan, dataset, compute(recipe, dataset)), Listener()).finished
