"""Plans that are chosen with a formula in place of the compiler, for machines of any cards."""

from __future__ import annotations

from typing import Any

from harness.artifacts import Candidate, Gpu, Host, Machine, Plan
from harness.plan import memory
from harness.plan.activations import kept_bytes
from harness.plan.asked import Ask, Tools
from harness.plan.choose import choose
from harness.plan.compile import Answer, Request
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.units import GIB

MACHINE = Machine(host=Host(ram_available_bytes=8 * GIB), gpu_error="no driver")
A_SAMPLE = 150 * 2**20


class Formula:
    """Plays the compiler: the state, the gradients, 1 GiB, so much a sample, and what is kept of the layers.

    Notes what it was asked.
    """

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, request: Request, **_: object) -> Answer:
        self.asked.append(request)
        return Answer(bytes=self.bytes(request), program_sha256="formula")

    @staticmethod
    def bytes(request: Request) -> dict[str, int]:
        parts = memory.state_parts(request.recipe, request.levers)
        state = parts["weights"] + parts["moments"] + parts["ema"]
        if request.phase != "step":
            return {"device": state, "temp": 0}
        temp = parts["gradients"] + GIB + A_SAMPLE * request.levers.microbatch
        temp += kept_bytes(request.recipe, request.levers)
        return {"device": state + temp, "temp": temp}


def planned(recipe: Recipe, machine: Machine = MACHINE, compile: Any = None, **asked: Any) -> Plan:
    return choose(recipe, machine, None, Ask(**asked), tools=Tools(None, compile or Formula()))


def plan_of(chosen: Candidate, device: str) -> Plan:
    """A plan of the smoke recipe that has this one candidate. Nothing was searched for it."""
    return Plan(
        recipe="smoke",
        recipe_sha256="",
        device=device,
        parameters_total=1,
        parameters_trained=1,
        chosen=chosen,
        candidates=[chosen],
    )


def with_gpus(*gpus: Gpu, **host: Any) -> Machine:
    return Machine(host=Host(**{"ram_available_bytes": 256 * GIB, "cores": 16.0} | host), gpus=list(gpus))


def gpu(
    index: int = 0,
    name: str = "NVIDIA RTX A6000",
    capability: str = "8.6",
    total: int = 48,
    free: float | None = None,
    **more: Any,
) -> Gpu:
    free_bytes = int((total if free is None else free) * GIB)
    return Gpu(
        index=index,
        name=name,
        uuid=f"GPU-{index}",
        compute_capability=capability,
        total_bytes=total * GIB,
        free_bytes=free_bytes,
        **more,
    )


FULL, LORA = load_recipe("pi05_libero"), load_recipe("pi05_libero_lora")
