"""A good machine, run and dataset for tests of the doctor, and what its checks find there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.artifacts import (
    Candidate,
    Dataset,
    DimensionStats,
    Gpu,
    Host,
    Levers,
    Machine,
    NormStats,
    Plan,
)
from harness.doctor import examine
from harness.doctor.situation import Situation
from harness.recipe.load import load_recipe
from harness.units import GIB, MIB

CARD = Gpu(
    index=0,
    name="NVIDIA RTX A6000",
    uuid="GPU-1",
    compute_capability="8.6",
    total_bytes=48 * GIB,
    free_bytes=47 * GIB,
    foreign_processes=[],
)
HOST = Host(
    ram_total_bytes=64 * GIB,
    ram_available_bytes=60 * GIB,
    shm_bytes=8 * GIB,
    cores=8,
    wsl=False,
    container="docker",
)
LEVERS = Levers(platform="cuda", microbatch=8, prompt_tokens=48, cameras=["base_0_rgb"])
FITS = Candidate(
    levers=LEVERS,
    device_bytes=20 * GIB,
    host_bytes=4 * GIB,
    disk_bytes=2 * MIB,
    verdict="fits",
    reason="fits",
    source="compiled",
)
NUMBERS = DimensionStats(mean=[0.0], std=[1.0], q01=[-1.0], q99=[1.0])
STATS = NormStats(norm_stats={"state": NUMBERS, "actions": NUMBERS}, frames=9, action_horizon=2)
FACTS: dict[str, Any] = {
    "features": {},
    "cameras": {},
    "sha256": "0",
    "longest_prompt_tokens": 9,
    "prompt_tokens": 16,
    "total_bytes": 1,
}
DATASET = Dataset(
    source="sample",
    path="sample",
    format_version="v2.1",
    fps=10,
    episodes=2,
    frames=999,
    tasks=["one"],
    **FACTS,
)
# The data is not here: what is looked at of it is then unknown.
NO_DATA: dict[str, Any] = {"dataset": None, "stats": None}
UNSEEN = {"dataset": "unknown", "statistics": "unknown"}
# Without the check that starts a process of JAX, which is tried on its own.
QUIET = tuple(check for check in examine.CHECKS if check.name != "GPU and JAX")


def plan(chosen: Candidate | None) -> Plan:
    return Plan(
        recipe="r",
        recipe_sha256="0",
        device="rtx_a6000",
        usable_bytes=46 * GIB,
        parameters_total=1,
        parameters_trained=1,
        chosen=chosen,
        candidates=[FITS],
    )


def situation(tmp_path: Path, **changes: Any) -> Situation:
    machine = Machine(gpus=[CARD], driver_version="570.86.15", cuda_driver_version="12.8", host=HOST)
    usual: dict[str, Any] = {
        "recipe": load_recipe("smoke"),
        "machine": machine,
        "environ": {"HOME": str(tmp_path)},
        "plan": plan(FITS),
    }
    usual |= {"run": tmp_path, "writes": (tmp_path,), "dataset": DATASET, "stats": STATS}
    return Situation(**(usual | changes))


def found(case: Situation) -> dict[str, str]:
    """Check → severity."""
    return {finding.check: finding.severity for finding in examine.examine(case, checks=QUIET).findings}


def card(**changes: Any) -> Machine:
    return Machine(gpus=[CARD.model_copy(update=changes)], driver_version="570.86.15", host=HOST)


def on(**changes: Any) -> Machine:
    return Machine(gpus=[CARD], driver_version="570.86.15", host=HOST.model_copy(update=changes))
