"""Laws of the compiled programs over several devices: what travels, and what a device and the host hold."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import jax

from harness.checkpoint.store import Store
from harness.recipe.load import load_recipe
from harness.recipe.parameters import EMBEDDING, parameter_shapes
from harness.train.phases import compile_phase
from harness.train.setup import setup_of
from harness.train.sharding import SMALLEST, Layout
from harness.train.snapshot import save
from harness.train.state import abstract_params
from tests.support.sharded import (
    BATCH,
    FOUR,
    ONE,
    TOKENS,
    collectives,
    compiled,
    hosted,
    layout,
    learner,
    three_steps,
)


def law_a_table_in_host_memory_is_walked_through_by_its_shards() -> None:
    """Left in one piece or gathered, it alone would be gigabytes on every device."""
    recipe, (step, *_) = learner(), hosted()
    rows, width = parameter_shapes(recipe.model)[EMBEDDING]
    assert step.setup.layout.cuttable(f"trained/{EMBEDDING}", (rows, width)) == 1
    gathered = {dims for _, dims, name in collectives(step.run.as_text()) if name == "all-gather"}
    assert f"{rows},{width}" not in gathered
    assert f"f32[{2**11 // width},{width // 4}]" in step.run.as_text()


def law_no_row_travels_and_layers_are_gathered_one_at_a_time() -> None:
    recipe, found = learner(), collectives(compiled((), 2, **FOUR).run.as_text())
    names = {name for _, _, name in found}
    assert names >= {"all-gather", "all-reduce"}
    # On CPUs whole gradients are summed. Gloo's reduce-scatter gives wrong sums of large chunks (jax issue
    # 40830), so processes on CPUs would learn something else.
    assert "reduce-scatter" not in names
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
        places = layout(4, fsdp).structs(abstract_params(published))
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
