"""Tests busy cards: who holds them, what they have free, waiting until an idle card would do no better."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.artifacts import Gpu, GpuProcess, Machine, Plan
from harness.flow import wait
from harness.flow.chain import Chain
from harness.plan.asked import Ask, Tools
from harness.plan.busy import holders, idle
from harness.plan.candidates import changed
from harness.plan.choose import choose
from harness.recipe.load import load_recipe
from harness.run.directory import RECIPE, RunDir
from harness.units import GIB
from tests.support.planned import LORA, Formula, gpu, planned, with_gpus
from tests.support.tiny import tiny

BUSY = with_gpus(gpu(free=4, foreign_processes=[GpuProcess(pid=4711, name="python", used_bytes=44 * 2**30)]))
IDLE = with_gpus(gpu())


class Chained:
    """A chain whose machine changes from one look to the next."""

    def __init__(self, *machines: Machine) -> None:
        self._machines, self.looked, self.kept = list(machines), 0, Plan.model_construct()

    def machine(self) -> Machine:
        self.looked += 1
        return self._machines[min(self.looked, len(self._machines)) - 1]

    def plan(self, machine: Machine, _: object, **asked: Any) -> Plan:
        asked.pop("say")
        self.kept = choose(LORA, machine, None, Ask(**asked), tools=Tools(None, Formula()))
        return self.kept


def test_who_holds_a_card_is_said_and_a_desktop_is_nobody() -> None:
    assert "4711" in holders(BUSY)
    assert "44.0 GiB" in holders(BUSY)
    assert holders(with_gpus(gpu(free=47))) == ""
    hidden = with_gpus(gpu(free=4, unknown={"foreign_processes": "this is a container"}))
    assert "this is a container" in holders(hidden)
    assert idle(BUSY).gpus[0].free_bytes == 48 * 2**30


def test_waiting_ends_when_the_card_is_free_and_says_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait.time, "sleep", lambda _: None)
    chain, said = Chained(BUSY, BUSY, IDLE), []
    made = wait.wait_for_cards(chain, None, {}, said.append)
    assert chain.looked == 3
    assert made.chosen.deviations == []
    assert made == chain.kept  # what lies in the run's directory is the plan that is answered
    assert "4711" in said[-1]


@pytest.mark.parametrize(
    "card",
    [gpu(), gpu(total=3, free=0.5), gpu(free=40)],
    ids=["idle", "hopeless either way", "enough is free"],
)
def test_where_waiting_gains_nothing_nobody_waits(card: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait.time, "sleep", lambda _: pytest.fail("waited"))
    wait.wait_for_cards(Chained(with_gpus(card, wsl=True)), None, {}, lambda _: None)


def test_an_interrupt_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wait.time, "sleep", interrupt)
    with pytest.raises(typer.Exit) as ended:
        wait.wait_for_cards(Chained(BUSY), None, {}, lambda _: None)
    assert ended.value.exit_code == 130


def test_an_approximate_plan_changes_the_recipe_of_the_run_and_says_how(tmp_path: Any) -> None:
    plan = planned(load_recipe("pi05_libero"), gpu="rtx_3060", host_ram_bytes=32 * 2**30)
    assert plan.chosen is not None
    assert plan.chosen.changes
    chain = Chain(RunDir(tmp_path), load_recipe("pi05_libero"), trains=True)
    assert chain.carry_out(plan) == plan.chosen.deviations != []
    assert (
        chain.recipe
        == changed(load_recipe("pi05_libero"), plan.chosen.changes)
        == load_recipe(str(tmp_path / RECIPE))
    )


def test_an_exact_plan_leaves_the_recipe_alone(tmp_path: Any) -> None:
    chain = Chain(RunDir(tmp_path), tiny(), trains=True)
    before = (tmp_path / RECIPE).read_bytes()
    assert chain.carry_out(planned(tiny(), gpu="rtx_3060")) == []
    assert (tmp_path / RECIPE).read_bytes() == before


@settings(deadline=None, max_examples=40)
@given(
    cards=st.lists(
        st.tuples(st.sampled_from([10, 12]), st.sampled_from([0.0, 0.6]), st.floats(0.5, 1)),
        min_size=1,
        max_size=4,
    )
)
def test_no_card_gives_more_than_it_has_free(cards: list[tuple[int, float, float]]) -> None:
    # Boards of one name come with two memories, and ECC takes a part of some.
    name = "NVIDIA GeForce RTX 3080"
    there = {
        f"GPU-{index}": gpu(
            index, name, total=total, free=(total - kept) * free, reserved_bytes=int(kept * GIB)
        )
        for index, (total, kept, free) in enumerate(cards)
    }
    plan = planned(LORA, with_gpus(*there.values()))
    assert plan.memory_fraction is not None
    assert plan.usable_bytes is not None
    for each in (there[uuid] for uuid in plan.device_uuids):
        pool = plan.memory_fraction * (each.total_bytes - each.reserved_bytes)
        assert pool + plan.context_bytes <= each.free_bytes
        assert pool + each.total_bytes / 1000 >= plan.usable_bytes + plan.margin_bytes
