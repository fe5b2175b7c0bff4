"""Tests which level of rematerialization a plan takes, with a formula in place of the compiler."""

from __future__ import annotations

import io
from importlib import metadata
from typing import Any

import pytest
from rich.console import Console

from harness.artifacts import Levers, Plan
from harness.plan.asked import Ask, Tools
from harness.plan.atlas import Atlas, AtlasFile, Entry, step_key
from harness.plan.choose import choose
from harness.plan.compile import Request
from harness.plan.need import not_asked
from harness.plan.source import source_hash
from harness.show.plan import plan_view
from harness.units import GIB
from tests.support.planned import FULL, MACHINE, Formula, gpu, planned, with_gpus
from tests.support.tiny import tiny

# The formula's plan of 32 rows needs 68 GiB, with the feed-forward products 87, with all products 97.
NOTHING_MORE, ONE_LEVEL, BOTH = 80, 92, 130


def asked(vram: int, **more: Any) -> tuple[Plan, list[str]]:
    """(the plan for a card of so many GiB, the levels that the compiler was asked about)."""
    formula = Formula()
    plan = planned(FULL, compile=formula, gpu="h200", vram_bytes=vram * GIB, host_ram_bytes=200 * GIB, **more)
    return plan, [request.levers.remat for request in formula.asked]


@pytest.mark.parametrize(
    ("vram", "rows", "level", "questions"),
    [
        (BOTH, 32, "names", ["block", "names"]),
        (98, 32, "mlp", ["block", "names", "mlp"]),
        (ONE_LEVEL, 32, "mlp", ["block", "mlp"]),
        (90, 16, "names", ["block", "mlp", "names"]),
        (NOTHING_MORE, 32, "block", ["block"]),
    ],
)
def test_the_fastest_that_fits_is_taken_and_what_cannot_fit_is_not_asked(
    vram: int, rows: int, level: str, questions: list[str]
) -> None:
    plan, levels = asked(vram)
    assert plan.chosen is not None
    assert (plan.chosen.levers.microbatch, plan.chosen.levers.remat) == (rows, level)
    assert levels == questions
    assert {one.levers.remat for one in plan.candidates} == set(questions)
    assert plan.candidates[0] == plan.chosen
    for one in plan.candidates:
        assert one.levers.microbatch * one.levers.accumulation_steps == 256
        assert (one.verdict == "rejected") == (one.device_bytes > (plan.usable_bytes or 0))
    assert (plan.chosen.seconds_per_step or 0) == min(
        one.seconds_per_step or 0 for one in plan.candidates if one.verdict == "fits"
    )


def test_on_a_cpu_and_where_the_loader_sets_the_pace_nothing_more_is_kept() -> None:
    assert {one.levers.remat for one in planned(tiny(), device="cpu").candidates} == {"block"}
    slow = with_gpus(gpu(name="NVIDIA H200", capability="9.0", total=140), cores=0.1)
    assert {one.levers.remat for one in planned(FULL, slow).candidates} == {"block"}


def test_one_memory_of_cpu_and_gpu_is_counted_with_both_parts() -> None:
    plan = planned(FULL, gpu="gb10", host_ram_bytes=118 * GIB)
    assert plan.chosen is not None
    assert plan.shared_memory
    assert plan.chosen.levers.remat == "mlp"
    assert plan.chosen.shared_phases["step"] < 118 * GIB


def test_a_plan_whose_saves_are_streamed_keeps_more_too() -> None:
    plan = planned(FULL, gpu="h200", host_ram_bytes=20 * GIB)
    assert plan.chosen is not None
    assert plan.chosen.levers.save == "streamed"
    assert plan.chosen.levers.remat == "names"


def atlas_of(*levels: str, short: int = 0) -> Atlas:
    """An atlas that knows the formula's plan of 32 rows with these levels, or a step so much longer."""
    entries = []
    for level in levels:
        levers = asked(BOTH)[0].candidates[-1].levers.model_copy(update={"remat": level})
        larger = levers.model_copy(update={"prompt_tokens": levers.prompt_tokens + short})
        sizes = Formula.bytes(Request(recipe=FULL, levers=larger))
        entries.append(Entry(recipe=step_key(FULL), levers=larger, bytes=sizes, fingerprint="formula"))
    file = AtlasFile(jaxlib=metadata.version("jaxlib"), source=source_hash(), recipes={}, entries=entries)
    return Atlas([file])


def from_atlas(atlas: Atlas, card: str, vram: int, compile: Any = not_asked, **more: Any) -> Plan:
    ask = Ask(gpu=card, vram_bytes=vram * GIB, host_ram_bytes=200 * GIB)
    return choose(FULL, MACHINE, None, ask, tools=Tools(atlas, compile, **more), advise=False)


@pytest.mark.parametrize("card", ["h200", "h800"], ids=["of the table", "another stands in"])
@pytest.mark.parametrize(
    ("known", "level"),
    [(("block",), "block"), (("block", "mlp"), "mlp"), (("block", "mlp", "names"), "names")],
)
def test_where_the_atlas_has_the_plan_only_levels_that_it_knows_are_taken(
    known: tuple[str, ...], level: str, card: str
) -> None:
    plan = from_atlas(atlas_of(*known), card, BOTH)
    assert plan.chosen is not None
    assert plan.chosen.levers.remat == level
    assert plan.chosen.source == "atlas"


def test_a_bound_that_does_not_fit_asks_no_compiler() -> None:
    plan = from_atlas(atlas_of("block", "mlp", "names", short=8), "h200", 98)
    assert plan.chosen is not None
    assert (plan.chosen.levers.remat, plan.chosen.source) == ("mlp", "interpolated")


def test_the_maker_of_the_atlas_asks_for_the_levels_that_it_lacks() -> None:
    formula = Formula()
    plan = from_atlas(atlas_of("block"), "h200", BOTH, formula, thorough=True)
    assert [request.levers.remat for request in formula.asked] == ["names"]
    assert plan.chosen is not None
    assert plan.chosen.levers.remat == "names"


def test_a_plan_says_what_it_keeps_in_words() -> None:
    def words(plan: Plan) -> str:
        console = Console(file=io.StringIO(), width=200, record=True)
        console.print(plan_view(plan))
        return console.export_text()

    assert "keeps the layers' products: faster" in words(asked(BOTH)[0])
    assert "keeps the feed-forward products: faster" in words(asked(ONE_LEVEL)[0])
    assert "keeps" not in words(asked(NOTHING_MORE)[0])


@pytest.mark.parametrize("level", ["block", "none"])
def test_a_plan_of_before_is_still_read(level: str) -> None:
    old = {"platform": "cuda", "microbatch": 8, "prompt_tokens": 48, "cameras": [], "remat": level}
    assert Levers.model_validate(old).remat == level
    assert Levers.model_validate({key: old[key] for key in old if key != "remat"}).remat == "block"
