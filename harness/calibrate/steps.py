"""One plan as it runs: the planner's choice for a recipe, its step compiled, and some steps of it timed.

Weights are random and batches are made, so that nothing is fetched. The program is the trainer's own.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.artifacts import Levers, Machine, MeasuredPlan, Plan
from harness.calibrate.ceilings import context_of
from harness.calibrate.stages import Answer, Request, Work
from harness.plan import candidates, cost
from harness.plan.cards import Card
from harness.plan.devices import devices_of, figures
from harness.plan.place import CONTEXT_BYTES
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.units import GIB, format_bytes

Say = Callable[[str], None]
# A step that is predicted to take longer accumulates less. Two microbatches are a loop, as more of them are.
_LONGEST_STEP_S, _LEAST_ACCUMULATED = 6.0, 2
# Seconds that the timed steps may take together.
_STEPS_S = 30.0
# A pool may be this share off from what was asked for: JAX rounds it down to whole blocks.
_POOL = 0.02


def measured_plan(request: Request, machine: Machine, start: Callable[[], str], say: Say) -> Answer:
    """The plan as it ran, or why there is none for this card. `start` starts JAX, after the pool is set.

    Raises: HarnessError of the planner, and of JAX's start.
    """
    work = request.work
    shipped = load_recipe(work.recipe)
    recipe = candidates.changed(shipped, work.changes)
    if work.pool_bytes and request.total_bytes and work.pool_bytes + CONTEXT_BYTES > request.total_bytes:
        return Answer(skipped=f"this card has no {format_bytes(work.pool_bytes)} for the pool")
    if work.levers is not None:
        plan, levers, changes = None, work.levers, {}
    else:
        say("planning")
        plan = _planned(recipe, request, machine, say)
        if plan.chosen is None:
            told = next((one.reason for one in plan.candidates), "nothing was looked at")
            return Answer(skipped=f"no plan of it fits here: {told}")
        levers, changes = plan.chosen.levers, plan.chosen.changes
    card = _card(machine) if request.platform == "cuda" else None
    recipe = candidates.changed(recipe, changes)
    whole = None if card is None else cost.seconds_per_step(recipe, levers, card, None)
    levers = shortened(levers, whole)
    rows = levers.microbatch * levers.accumulation_steps * levers.devices
    every = work.changes | changes | {"weights.source": None, "train.global_batch": rows}
    recipe = candidates.changed(shipped, every)
    fraction = _fraction(request, plan)
    if fraction is not None:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction:.4f}"
    start()
    made = run_steps(recipe, levers, request, say)
    about = {
        "recipe": work.recipe,
        "changes": every,
        "planned_bytes": plan.chosen.device_bytes if plan and plan.chosen else None,
        "predicted_s": None if card is None else cost.seconds_per_step(recipe, levers, card, None),
        "unknown": made.unknown | _pool_is_other(work, made),
    }
    return Answer(plan=made.model_copy(update=about))


def _card(machine: Machine) -> Card | None:
    """The figures of the card that this process sees, with which the cost model predicts its steps."""
    every = [device for gpu in machine.usable_gpus for device in devices_of(gpu, machine)]
    return figures(every[0], every[0].total or 0)[0] if every else None


def _planned(recipe: Recipe, request: Request, machine: Machine, say: Say) -> Plan:
    from harness.plan.asked import Ask, Tools
    from harness.plan.atlas import shipped
    from harness.plan.choose import choose

    pool = request.work.pool_bytes
    ask = Ask(
        device=request.platform,
        vram_bytes=None if pool is None else pool + CONTEXT_BYTES,
        exact=request.work.exact,
    )
    return choose(recipe, machine, None, ask, tools=Tools(shipped(), say=say), advise=False)


def _fraction(request: Request, plan: Plan | None) -> float | None:
    """The share of the card that JAX's pool is given."""
    if request.work.pool_bytes is not None and request.total_bytes:
        return request.work.pool_bytes / request.total_bytes
    return None if plan is None else plan.memory_fraction


def shortened(levers: Levers, seconds: float | None) -> Levers:
    """The levers, with fewer accumulation steps where a step is predicted to take many `seconds`."""
    if seconds is None or seconds <= _LONGEST_STEP_S:
        return levers
    fewer = max(_LEAST_ACCUMULATED, math.floor(levers.accumulation_steps * _LONGEST_STEP_S / seconds))
    return levers.model_copy(update={"accumulation_steps": min(levers.accumulation_steps, fewer)})


def _pool_is_other(work: Work, made: MeasuredPlan) -> dict[str, str]:
    """What to say if the pool is not the one that was asked for."""
    asked, got = work.pool_bytes, made.limit_bytes
    if asked is None or got is None or abs(got - asked) <= _POOL * asked:
        return {}
    return {"limit_bytes": f"a pool of {asked / GIB:.2f} GiB was asked for, and JAX made {got / GIB:.2f} GiB"}


def run_steps(recipe: Recipe, levers: Levers, request: Request, say: Say) -> MeasuredPlan:
    """The step of `recipe`, compiled and run on the first device here, with its bytes and seconds."""
    import jax

    from harness.train.programs import step_here
    from harness.train.setup import setup_of
    from harness.train.sharding import local_layout
    from harness.train.start import random_state

    say(f"compiling the step of {levers.microbatch} x {levers.accumulation_steps}")
    begun = time.perf_counter()
    step = step_here(setup_of(recipe, local_layout(levers)), levers)
    compiled_s = time.perf_counter() - begun
    say("making the state" + (", in pinned host memory" if levers.host else ""))
    begun = time.perf_counter()
    state = jax.block_until_ready(random_state(step.setup, jax.random.key(0)))
    init_s = time.perf_counter() - begun
    device = step.setup.layout.mesh.devices.flat[0]
    after_init = (device.memory_stats() or {}).get("peak_bytes_in_use")
    layout = step.setup.layout
    made = _batch(recipe, levers)
    batch = jax.device_put(made, jax.tree.map(lambda _: layout.rows, made))
    key = jax.device_put(jax.random.key(1), layout.replicated)
    seconds: list[float] = []
    for number in range(request.work.steps + 1):
        say(f"step {number + 1} of {request.work.steps + 1}")
        begun = time.perf_counter()
        state, metrics = step.run(state, batch, key)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - begun)
        if not math.isfinite(loss):
            raise ValueError(f"the loss of step {number + 1} is {loss}")
        if number and sum(seconds[1:]) + seconds[-1] > _STEPS_S:
            break
    stats = device.memory_stats() or {}
    context = context_of(request, stats)
    peak, limit = stats.get("peak_bytes_in_use"), stats.get("bytes_limit")
    no_figure = f"JAX's allocator on {device.device_kind} keeps no such figure"
    lacks = {"init_peak_bytes": after_init, "peak_bytes": peak, "limit_bytes": limit}
    unknown = {name: no_figure for name, value in lacks.items() if value is None}
    if context.context_bytes is None:
        unknown["context_bytes"] = context.unknown["context_bytes"]
    return MeasuredPlan(
        recipe=recipe.name,
        levers=levers,
        compiled_bytes=step.bytes["device"],
        compiled_host_bytes=step.bytes["host"],
        **lacks,
        context_bytes=context.context_bytes,
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        compile_s=compiled_s,
        init_s=init_s,
        seconds=seconds[1:],
        unknown=unknown,
    )


def _batch(recipe: Recipe, levers: Levers) -> dict[str, Any]:
    """A made batch, of the shapes and types that the step is compiled for: images of noise, short prompts."""
    import jax
    import numpy as np

    from harness.train.compiled import abstract_batch

    rng = np.random.default_rng(0)

    def array(x: Any) -> Any:
        if x.dtype == bool:
            return np.broadcast_to(np.arange(x.shape[-1]) < max(1, x.shape[-1] // 2), x.shape)
        if np.issubdtype(x.dtype, np.floating):
            return rng.standard_normal(x.shape).astype(x.dtype)
        top = 256 if x.dtype == np.uint8 else min(4096, recipe.model.vocab_size)
        return rng.integers(0, top, x.shape, dtype=x.dtype)

    return dict(jax.tree.map(array, abstract_batch(recipe, levers)))


def own_paths() -> list[Path]:
    """The files whose change makes earlier measurements those of another program."""
    here = Path(__file__).parent
    serve = here.parent / "serve"
    measuring = [here / f"{name}.py" for name in ("stage", "ceilings", "steps", "sampling", "stages")]
    return measuring + [serve / f"{name}.py" for name in ("program", "vision", "compiled", "shapes")]
