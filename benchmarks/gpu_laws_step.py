"""One side of the comparison with openpi: a step at its real size, timed on the device that is here.

    python benchmarks/gpu_laws_step.py ours LEVERS STEPS [small]
    python benchmarks/gpu_laws_step.py openpi BATCH STEPS [small]

A part of gpu_laws.py, which starts it: a process of its own for each side, since each wants the whole card,
and perhaps another Python. LEVERS is a plan's, as JSON. Parameters and batches are random; `small` takes the
sizes of step_time.py. Prints one line of JSON: seconds of each step behind the first, the bytes that the
compiler says, and the allocator's peak.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import step_time


def ours(levers_json: str, small: bool) -> tuple[Callable[[], float], dict[str, Any]]:
    """Our step of pi05_libero as its plan says; the published recipe's numbers in both sizes."""
    import jax
    import numpy as np

    from harness.artifacts import Levers
    from harness.recipe.load import load_recipe
    from harness.train import device
    from harness.train.programs import step_here
    from harness.train.setup import setup_of
    from harness.train.sharding import local_layout
    from harness.train.start import random_state

    levers = Levers.model_validate_json(levers_json)
    batch = levers.microbatch * levers.accumulation_steps
    sets = ["weights.source=null", f"train.global_batch={batch}"]
    if small:
        sets += step_time.make_ours_small()
    recipe = load_recipe("pi05_libero", sets)
    device.start()
    setup = setup_of(recipe, local_layout(levers))
    begun = time.perf_counter()
    step = step_here(setup, levers)
    compile_s = time.perf_counter() - begun
    begun = time.perf_counter()
    made = [jax.block_until_ready(random_state(setup, jax.random.key(0)))]
    init_s = time.perf_counter() - begun
    inputs = step_time.batch_of(np.random.default_rng(0), batch, levers.cameras, levers.prompt_tokens)
    inputs = jax.device_put(inputs, jax.tree.map(lambda _: setup.layout.rows, inputs))
    key = jax.device_put(jax.random.key(1), setup.layout.replicated)

    def one() -> float:
        made[0], metrics = step.run(made[0], inputs, key)
        jax.block_until_ready(made[0])
        return float(metrics["loss"])

    known = {"batch": batch, "compile_s": compile_s, "init_s": init_s, "compiled_bytes": step.bytes["device"]}
    return one, known


def openpi(batch: int, small: bool) -> tuple[Callable[[], float], dict[str, Any]]:
    import jax

    begun = time.perf_counter()
    theirs = step_time.upstream(batch, small=small)
    jax.block_until_ready(theirs.state)
    init_s = time.perf_counter() - begun
    begun = time.perf_counter()
    with theirs.on_mesh():
        compiled = theirs.step.lower(theirs.key, theirs.state, theirs.inputs).compile()
    compile_s = time.perf_counter() - begun
    made = [theirs._replace(state=None), theirs.state]
    said = compiled.memory_analysis()
    bytes_ = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    del theirs

    def one() -> float:
        with made[0].on_mesh():
            made[1], info = compiled(made[0].key, made[1], made[0].inputs)
        jax.block_until_ready(made[1])
        return float(info["loss"])

    known = {"batch": batch, "compile_s": compile_s, "init_s": init_s}
    return one, known | {"compiled_bytes": bytes_ + said.temp_size_in_bytes}


def main() -> None:
    side, what, steps, *small = sys.argv[1:]
    one, known = ours(what, bool(small)) if side == "ours" else openpi(int(what), bool(small))
    import jax

    losses, seconds = [one()], []
    for _ in range(int(steps)):
        begun = time.perf_counter()
        losses.append(one())
        seconds.append(time.perf_counter() - begun)
    memory = jax.devices()[0].memory_stats() or {}
    print(
        json.dumps(
            {"side": side, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
            | known
            | {"step_s": seconds, "losses": losses}
            | {"peak_bytes": memory.get("peak_bytes_in_use"), "pool_bytes": memory.get("bytes_limit")}
        )
    )


if __name__ == "__main__":
    main()
