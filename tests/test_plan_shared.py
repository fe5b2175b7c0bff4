"""Tests plans where CPU and GPU share one memory (GB10, Jetson).

Each phase counts its device and host bytes once, saves included.
"""

from __future__ import annotations

import pytest

from harness.artifacts import Gpu
from harness.checkpoint.leaves import IN_FLIGHT_BYTES
from harness.plan import memory
from harness.recipe.schema import Recipe
from harness.units import GIB
from tests.support.planned import FULL, LORA, MACHINE, planned, with_gpus

# Saves are streamed where the step fits, and a copy of the state beside it does not.
POOLS = [
    (FULL, 80, True, "streamed"),  # 64 of 77 GiB for the step
    (FULL, 100, True, "streamed"),
    (FULL, 112, True, "async"),
    (LORA, 20, False, "streamed"),
    (LORA, 24, True, "streamed"),
    (LORA, 30, True, "async"),
]


@pytest.mark.parametrize(("recipe", "pool", "exact", "save"), POOLS)
@pytest.mark.parametrize("here", [True, False], ids=["in this machine", "not here"])
def test_where_cpu_and_gpu_have_one_memory_each_phase_is_counted_once_saves_included(
    recipe: Recipe, pool: int, exact: bool, save: str, here: bool
) -> None:
    """GB10: pi05_libero needs 104 GiB of the pool while it saves a copy, LoRA 25.4."""
    card = Gpu(index=0, name="NVIDIA GB10", uuid="GPU-0", compute_capability="12.1", integrated=True)
    machine = with_gpus(card, ram_available_bytes=100 * GIB, ram_total_bytes=120 * GIB) if here else MACHINE
    plan = planned(recipe, machine, host_ram_bytes=pool * GIB, **({} if here else {"gpu": "gb10"}))
    assert plan.shared_memory
    assert plan.free_bytes == pool * GIB
    assert plan.usable_bytes is not None
    assert plan.chosen is not None
    assert (plan.chosen.changes == {}) == exact
    assert plan.chosen.levers.save == save
    for one in plan.candidates:
        assert not one.levers.host, "there is no other memory to move the state to"
        assert one.host_bytes is not None
        worst = max(one.shared_phases.values())
        assert worst >= one.shared_phases["save"] >= one.host_bytes
        assert one.verdict == ("fits" if worst <= plan.usable_bytes else "rejected")
    first = next(one for one in plan.candidates if not one.changes and one.levers.save == "async")
    needed = {"pi05_libero": 103.9, "pi05_libero_lora": 25.4}[recipe.name]
    assert first.shared_phases["save"] / GIB == pytest.approx(needed, abs=0.1)
    assert (first.verdict == "fits") == (exact and save == "async")
    assert first.verdict == "fits" or "in the phase save" in first.reason
    if here:
        # What JAX takes at once is enough for it, and of the same memory; where it is the host's too while it
        # saves, that is said.
        taken, device, host = (
            (plan.memory_fraction or 0) * 120 * GIB,
            plan.chosen.device_bytes or 0,
            plan.chosen.host_bytes or 0,
        )
        assert device <= taken <= pool * GIB
        assert any("JAX keeps" in note for note in plan.notes) == (device + host > plan.usable_bytes)


def test_on_a_shared_memory_what_is_said_of_the_card_bounds_its_part_of_the_pool() -> None:
    plan = planned(LORA, gpu="gb10", vram_bytes=12 * GIB, host_ram_bytes=110 * GIB)
    assert plan.usable_bytes is not None
    assert plan.usable_bytes < 12 * GIB
    assert all(
        one.device_bytes is None or one.device_bytes <= plan.usable_bytes or one.verdict == "rejected"
        for one in plan.candidates
    )
    assert planned(LORA, gpu="gb10", vram_bytes=60 * GIB).free_bytes == 60 * GIB


def test_a_card_with_memory_of_its_own_is_not_shared() -> None:
    for name in ("gh200", "rtx_a6000"):
        plan = planned(LORA, gpu=name, host_ram_bytes=64 * GIB)
        assert not plan.shared_memory
        assert all(not one.shared_phases for one in plan.candidates)


def test_the_bytes_in_flight_are_those_of_the_reader_of_weights() -> None:
    assert memory.IN_FLIGHT_BYTES == IN_FLIGHT_BYTES
