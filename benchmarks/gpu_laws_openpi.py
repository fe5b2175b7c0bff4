"""The stage of gpu_laws.py that measures our step at its real size, and openpi's own on the same card."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from benchmarks.gpu_laws_book import batches_to_try, compared
from benchmarks.gpu_laws_place import ROOT, Place, Skipped
from harness.artifacts import Levers
from harness.openpi.plan import POOL_FRACTION
from harness.openpi.table import Setup, need
from harness.probe.machine import probe
from harness.run.surroundings import jax_variables

CAMERAS = ["base_0_rgb", "left_wrist_0_rgb"]
# Of the card for JAX's pool, where the README's share is too little for the batch that openpi ships.
_WIDE = 0.95


def openpi(place: Place) -> tuple[bool, dict[str, Any]]:
    if place.openpi is None:
        raise Skipped("--openpi CHECKOUT is not given")
    known = {one["side"]: one for one in place.book.notes.get("openpi", [])}
    if "ours" not in known:
        known["ours"] = side_of_ours(place)
        place.book.note("openpi", known["ours"])
    if "openpi" not in known:
        known["openpi"] = side_of_openpi(place)
        place.book.note("openpi", known["openpi"])
    return True, compared(known["ours"], known["openpi"]) | {"lines": list(known.values())}


def side_of_ours(place: Place) -> dict[str, Any]:
    if place.rehearse:
        levers = Levers(platform="cpu", microbatch=1, accumulation_steps=2, prompt_tokens=48, cameras=CAMERAS)
        return measured(place, "ours", levers.model_dump_json(), place.environment(), sys.executable)
    planned = place.harness("plan", "--recipe=pi05_libero", "--set=weights.source=null", "--json")
    chosen = json.loads(planned.out)["chosen"] if planned.code == 0 else None
    if chosen is None:
        raise RuntimeError(f"no plan of the published recipe fits this card: {planned.err[-1500:]}")
    levers = Levers.model_validate(chosen["levers"])
    environment = place.environment() | {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(POOL_FRACTION)}
    # As the trainer starts JAX: its program is in the cache that the plan has filled.
    environment |= jax_variables("cuda", environment)
    line = measured(place, "ours", levers.model_dump_json(), environment, sys.executable)
    return line | {"planned_bytes": chosen["device_bytes"], "levers": levers.model_dump(mode="json")}


def side_of_openpi(place: Place) -> dict[str, Any]:
    """As shipped: no flag of XLA, and of the card what its README gives JAX's pool, where that is enough."""
    assert place.openpi is not None
    folders = [place.openpi / name for name in ("scripts", "src", "packages/openpi-client/src")]
    # Beside what this Python is told: on a bare machine openpi's requirements may come from there too.
    told = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    environment = place.environment() | {
        "PYTHONPATH": os.pathsep.join([*map(str, folders), *told]),
        "JAXTYPING_DISABLE": "1",
    }
    environment.pop("XLA_FLAGS", None)
    if place.rehearse:
        return measured(place, "openpi", "2", environment, place.python)
    total = probe([]).usable_gpus[0].total_bytes
    refused = []
    for fraction, batch in largest(total):
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(fraction)
        try:
            line = measured(place, "openpi", str(batch), environment, place.python)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            refused.append(batch)
            continue
        return line | {"pool_fraction": fraction, "out_of_memory_at": refused}
    raise RuntimeError(f"no batch of openpi's step runs on this card; tried {refused}")


def largest(total_bytes: int | None) -> list[tuple[float, int]]:
    """(share of the card for JAX's pool, batch), in the order in which they are tried.

    256 gets a larger pool than the README's if it needs it. Any other batch is the largest in the README's.
    """

    def bytes_of(batch: int) -> int:
        return need(Setup("none", "full", True, batch)).bytes

    usual = batches_to_try(None if total_bytes is None else int(total_bytes * POOL_FRACTION), bytes_of)
    widened = batches_to_try(None if total_bytes is None else int(total_bytes * _WIDE), bytes_of)
    first = [(_WIDE, 256)] if 256 in widened and 256 not in usual else []
    return [*first, *((POOL_FRACTION, batch) for batch in usual)]


def measured(place: Place, side: str, what: str, environment: dict[str, str], python: str) -> dict[str, Any]:
    """The line of gpu_laws_step.py. Raises: RuntimeError with the end of what it said."""
    script = str(ROOT / "benchmarks" / "gpu_laws_step.py")
    steps, small = ("2", ["small"]) if place.rehearse else ("4", [])
    done = place.run([python, script, side, what, steps, *small], environment)
    lines = [line for line in done.out.splitlines() if line.startswith("{")]
    if done.code != 0 or not lines:
        raise RuntimeError(f"the step of {side} ({what[:80]}) ended with {done.code}: {done.err[-1500:]}")
    line: dict[str, Any] = json.loads(lines[-1])
    print(json.dumps({"stage": "openpi"} | line), flush=True)
    return line
