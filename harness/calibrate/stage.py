"""A stage in a process of its own: a request on stdin, what is being done and the answer on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from harness.artifacts import Machine
from harness.calibrate.ceilings import measure_ceilings, measure_context
from harness.calibrate.sampling import measure_sampling
from harness.calibrate.stages import Answer, Request
from harness.calibrate.steps import measured_plan
from harness.errors import HarnessError
from harness.plan.devices import devices_of
from harness.plan.place import CONTEXT_BYTES
from harness.probe.machine import probe
from harness.recipe.load import load_recipe
from harness.run.directory import cache_root
from harness.run.surroundings import jax_variables
from harness.supervise.signals import die_with_supervisor, end_at_once
from harness.units import GIB

# What stays free of a card beside the pool: the context, and what cuBLAS and the kernels take of their own.
_BESIDE_BYTES = CONTEXT_BYTES + GIB // 2
# The pool where it is not told how much of the card is free.
_SHARE = 0.5


def answer(request: Request, say: Callable[[str], None]) -> Answer:
    """What the stage has found, on the device that the request and the environment name.

    Raises: HarnessError of the planner, and "device-unavailable" if JAX does not start there.
    """
    machine = probe([cache_root()])
    os.environ.update(jax_variables(request.platform))
    os.environ["JAX_PLATFORMS"] = request.platform
    work = request.work
    pinned = not machine.host.wsl
    if work.kind == "plan":
        if work.pool_bytes is not None and not pinned:
            return Answer(skipped=_no_pinned(machine))
        return measured_plan(request, machine, _start, say)
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{pool_share(machine):.3f}"
    say("starting JAX")
    _start()
    if work.kind == "context":
        return Answer(context=measure_context(request, say))
    if work.kind == "sampling":
        return Answer(sampling=measure_sampling(work, say))
    model = load_recipe(work.recipe).model
    return Answer(ceilings=measure_ceilings(model, work, pinned=pinned, say=say))


def pool_share(machine: Machine) -> float:
    """The share of the card that JAX's pool is given where no plan says it: nearly all that is free."""
    every = [device for gpu in machine.usable_gpus for device in devices_of(gpu, machine)]
    free, total = (every[0].free, every[0].total) if every else (None, None)
    if free is None or not total or free <= 2 * _BESIDE_BYTES:
        return _SHARE
    return (free - _BESIDE_BYTES) / total


def _no_pinned(machine: Machine) -> str:
    return f"no pinned host memory under WSL (kernel {machine.host.kernel})"


def _start() -> str:
    from harness.train import device

    return device.start()


def _main() -> None:
    die_with_supervisor()
    request = Request.model_validate_json(sys.stdin.buffer.read())

    def say(text: str) -> None:
        print(json.dumps({"doing": text}), flush=True)

    try:
        found = answer(request, say)
    except HarnessError as refusal:
        got = f" ({refusal.got})" if refusal.got else ""
        found = Answer(refused=f"{refusal.what}{got}"[:900], code=refusal.code)
    print(json.dumps({"answer": found.model_dump(mode="json")}), flush=True)
    # JAX takes seconds to free what the end of the process frees anyway.
    end_at_once(0)


if __name__ == "__main__":
    _main()
