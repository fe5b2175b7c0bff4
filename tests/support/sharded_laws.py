"""Laws of a run over several devices.

They need four devices, so they run in their own process: `python -m tests.support.sharded_laws [LAW …]`.

It prints one JSON line, law → "ok" or the error; test_train_sharding.py reads the line.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.artifacts import Candidate, Levers, Memory, Plan
from harness.checkpoint.inspect import inspect
from harness.checkpoint.store import Store
from harness.data.dataset import describe
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.parameters import EMBEDDING, parameter_shapes
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir
from harness.run.job import Job
from harness.train import host
from harness.train.compiled import CompiledStep, compile_step
from harness.train.loop import train
from harness.train.phases import compile_phase
from harness.train.setup import setup_of
from harness.train.sharding import SMALLEST, Layout, local_layout
from harness.train.snapshot import restore, save
from harness.train.start import first_state, initializer, surround
from harness.train.state import TrainState, abstract_params
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.tiny import LORA, random_batch, random_params, tiny

ONE, FOUR, TWO_BY_TWO = {"devices": 1, "fsdp": 1}, {"devices": 4, "fsdp": 4}, {"devices": 4, "fsdp": 2}
# The sample dataset's prompts are padded to so many tokens: the loop compiles the same programs as the laws
# do.
BATCH, TOKENS = 8, 32
LEARNS = [
    "train.global_batch=8",
    "train.optimizer.eps=1.0e-4",
    "train.optimizer.schedule={warmup_steps: 1, peak: 1.0e-3, decay_steps: 10, end: 0.0}",
]


class Listener:
    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def phase(self, name: str) -> None: ...

    def step(self, line: Any, steps: int) -> None: ...


def levers(recipe: Recipe, accumulation_steps: int = 1, **mesh: int) -> Levers:
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    microbatch = BATCH // (mesh["devices"] * accumulation_steps)
    return Levers(
        platform="cpu",
        microbatch=microbatch,
        accumulation_steps=accumulation_steps,
        prompt_tokens=TOKENS,
        cameras=cameras,
        **mesh,
    )


def layout(devices: int, fsdp: int) -> Layout:
    return Layout(jax.local_devices()[:devices], fsdp)


@cache
def learner(*overrides: str) -> Recipe:
    return tiny("data.augment=true", *LEARNS, *overrides)


@cache
def compiled(
    recipe_overrides: tuple[str, ...], accumulation_steps: int, devices: int, fsdp: int
) -> CompiledStep:
    recipe = learner(*recipe_overrides)
    return here(recipe, levers(recipe, accumulation_steps, devices=devices, fsdp=fsdp))


def here(recipe: Recipe, plan: Levers) -> CompiledStep:
    """The step on this process's own devices."""
    return compile_step(setup_of(recipe, local_layout(plan)), plan)


@cache
def three_steps(
    recipe_overrides: tuple[str, ...], accumulation_steps: int, devices: int, fsdp: int
) -> tuple[TrainState, list[dict[str, float]]]:
    return steps_of(
        learner(*recipe_overrides), compiled(recipe_overrides, accumulation_steps, devices, fsdp), 3
    )


def steps_of(recipe: Recipe, step: CompiledStep, count: int) -> tuple[TrainState, list[dict[str, float]]]:
    place = step.setup.layout
    expected = place.placed(step.setup.shapes.params)
    params = {
        path: jax.device_put(jnp.asarray(value, expected[path].dtype), expected[path].sharding)
        for path, value in random_params(recipe).items()
    }
    state, key = surround(params, step.setup), jax.device_put(jax.random.key(5), place.replicated)
    lines = []
    for i in range(count):
        state, metrics = step.run(
            state, jax.device_put(random_batch(recipe, BATCH, TOKENS, seed=i), place.rows), key
        )
        lines.append({name: float(value) for name, value in metrics.items()})
    return state, lines


def assert_alike(
    one: tuple[TrainState, list[dict[str, float]]], many: tuple[TrainState, list[dict[str, float]]]
) -> None:
    """Metrics and trained parameters within 1e-6, relative to the metric and to the parameter's largest
    entry.
    """
    assert len({line["loss"] for line in one[1]}) == 3
    for a, b in zip(one[1], many[1], strict=True):
        for name, value in a.items():
            assert abs(b[name] / value - 1) <= 1e-6, (name, value, b[name])
    for path, value in one[0].trained.items():
        a, b = np.asarray(value), np.asarray(many[0].trained[path])
        worst = np.abs(a - b).max() / np.abs(a).max()
        assert worst <= 1e-6, (path, float(worst))


def same_within(recipe_overrides: tuple[str, ...], accumulation_steps: int, mesh: dict[str, int]) -> None:
    one, start = three_steps(recipe_overrides, 1, **ONE), random_params(learner(*recipe_overrides))
    assert (
        max(float(np.abs(np.asarray(x) - start[path]).max()) for path, x in one[0].trained.items()) > 1e-3
    ), "nothing was trained"
    assert_alike(one, three_steps(recipe_overrides, accumulation_steps, **mesh))


def law_four_shards_train_like_one_device() -> None:
    same_within((), 2, FOUR)


def law_two_replicas_of_two_shards_train_like_one_device() -> None:
    same_within((), 1, TWO_BY_TWO)


def law_lora_trains_alike_and_its_frozen_weights_are_sharded() -> None:
    same_within((*LORA, "train.ema_decay=null"), 1, FOUR)
    frozen = three_steps((*LORA, "train.ema_decay=null"), 1, **FOUR)[0].frozen
    check_shards({"frozen": frozen}, 4)


@cache
def hosted() -> tuple[CompiledStep, TrainState, list[dict[str, float]]]:
    """The step over four shards with everything in host memory, streamed in many pieces as the real leaves
    are, and where three of it lead.
    """
    plan = levers(learner(), 2, **FOUR).model_copy(update={"host": ["ema", "moments", "masters"]})
    with mock.patch.object(host, "_PIECE", 2**11):
        step = here(learner(), plan)
    return step, *steps_of(learner(), step, 3)


def law_a_table_in_host_memory_is_walked_through_by_its_shards() -> None:
    """Left in one piece or gathered, it alone would be gigabytes on every device."""
    recipe, (step, *_) = learner(), hosted()
    rows, width = parameter_shapes(recipe.model)[EMBEDDING]
    assert step.setup.layout.cuttable(f"trained/{EMBEDDING}", (rows, width)) == 1
    gathered = {dims for _, dims, name in collectives(step.run.as_text()) if name == "all-gather"}
    assert f"{rows},{width}" not in gathered
    assert f"f32[{2**11 // width},{width // 4}]" in step.run.as_text()


def law_any_plan_over_shards_learns_the_same() -> None:
    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @given(
        overrides=st.sampled_from([(), (*LORA, "train.ema_decay=null")]),
        mesh=st.sampled_from([FOUR, TWO_BY_TWO, {"devices": 2, "fsdp": 2}]),
        accumulation_steps=st.sampled_from([1, 2]),
        attention=st.sampled_from(["full", "chunked"]),
        remat=st.sampled_from(["block", "none"]),
        compute_copy=st.booleans(),
        in_host=st.sampled_from([["ema"], ["moments"], ["ema", "moments"], ["moments", "masters"]]),
    )
    def check(
        overrides: tuple[str, ...],
        mesh: dict[str, int],
        accumulation_steps: int,
        in_host: list[str],
        **others: Any,
    ) -> None:
        recipe = learner(*overrides)
        parts = [part for part in in_host if part != "ema" or recipe.train.ema_decay is not None]
        plan = levers(recipe, accumulation_steps, **mesh).model_copy(update={"host": parts, **others})
        with mock.patch.object(host, "_PIECE", 2**11):
            step = here(recipe, plan)
        assert_alike(three_steps(overrides, 1, **ONE), steps_of(recipe, step, 3))

    check()


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
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory, keep_every_steps=100)
        save(
            store,
            state,
            step=3,
            norm_stats_json="{}",
            asset_id="sample",
            record={"recipe_sha256": recipe.sha256()},
        )
        store.wait()
        for place in (step.setup.layout, layout(**ONE)):
            restored = restore(store, setup_of(recipe, place), 3)
            jax.tree.map(np.testing.assert_array_equal, restored, state)
            assert jax.tree.map(lambda x: x.sharding, restored) == place.of(state)
        store.close()


def check_shards(tree: Any, fsdp: int) -> None:
    """Every leaf lies in shards that are as large as the rule says; the rule is written here once more, from
    its sentence.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    cut = 0
    for keys, x in leaves:
        path = jax.tree_util.keystr(keys)
        axes = list(x.shape)[1 if "llm/layers/" in path or "encoderblock/" in path else 0 :]
        is_cut = math.prod(axes) >= SMALLEST and any(n % fsdp == 0 for n in axes)
        cut += is_cut
        assert len(x.addressable_shards) == 4
        for shard in x.addressable_shards:
            assert shard.data.size == x.size // (fsdp if is_cut else 1), (path, x.shape, shard.data.shape)
            if len(axes) < x.ndim:
                assert shard.data.shape[0] == x.shape[0], (path, "the layer axis is cut")
    assert cut > 5


def law_a_random_state_is_in_shards_and_the_same_on_any_number_of_devices() -> None:
    recipe = learner()
    made = {fsdp: initializer(setup_of(recipe, layout(4, fsdp)))(jax.random.key(3)) for fsdp in (4, 2)}
    for fsdp, state in made.items():
        check_shards(state, fsdp)
    one = initializer(setup_of(recipe, layout(**ONE)))(jax.random.key(3))
    for state in made.values():
        jax.tree.map(np.testing.assert_array_equal, state, one)


def law_the_state_stays_in_shards_from_step_to_step() -> None:
    for mesh in (FOUR, TWO_BY_TWO):
        check_shards(three_steps((), 2 if mesh is FOUR else 1, **mesh)[0], mesh["fsdp"])


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
            store = Store(directory, keep_every_steps=100)
            record = {"recipe_sha256": recipe.sha256()}
            save(store, state, step=3, norm_stats_json="{}", asset_id="sample", record=record)
            store.wait()
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
        store = Store(directory, keep_every_steps=100)
        state = jax.tree.map(jnp.copy, three_steps((), 2, **FOUR)[0])
        save(
            store,
            state,
            step=3,
            norm_stats_json="{}",
            asset_id="sample",
            record={"recipe_sha256": recipe.sha256()},
        )
        store.wait()
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
    plan = Plan(
        recipe="smoke",
        recipe_sha256="",
        device="cpu",
        parameters_total=1,
        parameters_trained=1,
        chosen=chosen,
        candidates=[chosen],
    )
    assert train(Job(RunDir(run), recipe, plan, dataset, compute(recipe, dataset)), Listener()).finished


def collectives(text: str) -> list[tuple[str, str, str]]:
    """(type, dimensions, operation) of every array that a compiled program sends from device to device."""
    found = []
    for result, name in re.findall(
        r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\(", text
    ):
        found += [(kind, dims, name) for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    return found


def law_no_row_travels_and_layers_are_gathered_one_at_a_time() -> None:
    recipe, found = learner(), collectives(compiled((), 2, **FOUR).run.as_text())
    assert {name for _, _, name in found} >= {"all-gather", "all-reduce"}
    # What each device has found of everybody's tokens in its columns of the embedding table, and the
    # gradients of that.
    travelling = {
        tuple(sorted(int(n) for n in dims.split(",") if n != "1"))
        for _, dims, name in found
        if name == "all-to-all"
    }
    width, rows = parameter_shapes(recipe.model)[EMBEDDING][1], BATCH // 4
    assert travelling <= {
        tuple(sorted({TOKENS, width // 4})),
        tuple(sorted({rows, TOKENS, width // 4})),
    }, travelling
    assert not [one for one in found if one[0] == "u8"], "images travel"
    whole = {
        shape
        for path, shape in parameter_shapes(recipe.model).items()
        if "llm/layers" in path and math.prod(shape[1:]) >= SMALLEST
    }
    gathered = {
        tuple(int(n) for n in dims.split(",") if n) for _, dims, name in found if name == "all-gather"
    }
    assert not whole & gathered, "a stack of layers is whole on a device"


def law_a_device_holds_its_part_of_the_state() -> None:
    for mesh in (ONE, FOUR):
        step = compiled((), 2 if mesh is FOUR else 1, **mesh)
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(step.setup.shapes.state))
        held = step.bytes["alias"]
        assert held < whole * (0.35 if mesh is FOUR else 1.01), (held, whole)
        assert held >= whole / mesh["devices"]


def law_phases_need_the_state_once() -> None:
    recipe = learner()
    for mesh in (ONE, FOUR):
        setup = setup_of(recipe, layout(**mesh))
        state = compiled((), 2 if mesh is FOUR else 1, **mesh).bytes["alias"]
        load, saving = compile_phase(setup, "load"), compile_phase(setup, "save")
        assert state <= load.bytes["device"] < 1.1 * state
        assert saving.bytes["argument"] == state
        assert state <= compile_phase(setup, "init").bytes["output"] < 1.1 * state
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(setup.shapes.state))
        assert saving.host_bytes == saving.disk_bytes == whole


def law_a_save_stages_what_is_foreseen() -> None:
    """Bytes that Orbax holds on the host when `save` returns, against the closed form."""
    from orbax.checkpoint._src.serialization import replica_slices

    recipe, original, staged = learner(), replica_slices.transfer_arrays_to_host, []

    def counting(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        staged.append(sum(slices.nbytes for slices in found))
        return found

    replica_slices.transfer_arrays_to_host = counting
    try:
        with tempfile.TemporaryDirectory() as directory:
            store = Store(directory, keep_every_steps=100)
            save(
                store,
                three_steps((), 2, **FOUR)[0],
                step=3,
                norm_stats_json="{}",
                asset_id="sample",
                record={},
            )
            before_return = sum(staged)
            store.close()
    finally:
        replica_slices.transfer_arrays_to_host = original
    foreseen = compile_phase(setup_of(recipe, layout(**FOUR)), "save").host_bytes
    assert before_return == sum(staged) == foreseen


def law_the_rule_leaves_little_whole_at_the_published_size() -> None:
    published = load_recipe("pi05_libero")
    for fsdp in (2, 4):
        places = layout(4, fsdp).placed(abstract_params(published))
        whole = sum(math.prod(x.shape) for x in places.values() if x.sharding.is_fully_replicated)
        assert whole < 1e-3 * 3_353_433_872, whole
        for path, x in places.items():
            if "llm/layers/" in path or "encoderblock/" in path:
                assert x.sharding.shard_shape(x.shape)[0] == x.shape[0]
    in_host = Layout(jax.local_devices(), 4, host=["ema"])
    table = in_host.leaf(f"ema/{EMBEDDING}", (257_152, 2048))
    assert table.shard_shape((257_152, 2048)) == (257_152, 512)
    assert in_host.leaf(f"opt_state/1/0/nu_scale/{EMBEDDING}", (257_152, 8)).shard_shape((257_152, 8)) == (
        257_152,
        2,
    )
    assert Layout(jax.local_devices()[:3], 3).leaf(f"ema/{EMBEDDING}", (257_152, 2048)).is_fully_replicated
    assert table.memory_kind == "pinned_host"


def law_a_plan_for_more_devices_than_there_are_is_refused() -> None:
    recipe = learner()
    plan = levers(recipe, **ONE).model_copy(update={"devices": 8, "fsdp": 8})
    with pytest.raises(HarnessError) as caught:
        here(recipe, plan)
    assert caught.value.code == "devices-missing"


LAWS: dict[str, Callable[[], None]] = {
    name.removeprefix("law_"): law for name, law in list(globals().items()) if name.startswith("law_")
}


def _verdict(law: Callable[[], None]) -> str:
    try:
        law()
    except Exception:
        return traceback.format_exc()
    return "ok"


if __name__ == "__main__":
    assert len(jax.local_devices()) == 4
    print(json.dumps({name: _verdict(LAWS[name]) for name in sys.argv[1:] or LAWS}))
