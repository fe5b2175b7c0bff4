"""Tests the choice of a plan for the tiny recipe with the real compiler."""

from __future__ import annotations

import pytest

from harness.artifacts import Host, Machine
from harness.errors import HarnessError
from harness.plan.asked import Ask
from harness.plan.candidates import changed
from harness.plan.choose import choose
from harness.recipe.load import load_recipe
from harness.recipe.parameters import counts
from harness.units import GIB
from tests.support.planned import MACHINE
from tests.support.tiny import tiny


@pytest.fixture
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # One directory for all: an answer that has not changed is not compiled again.
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path_factory.getbasetemp() / "plans"))


@pytest.mark.usefixtures("_cache")
def test_on_a_cpu_the_compiled_bytes_are_host_bytes_and_their_parts_add_up() -> None:
    plan = choose(tiny(), MACHINE, None)
    assert plan.chosen is not None
    assert plan.device == "cpu"
    assert plan.chosen.levers.microbatch == 4
    assert plan.chosen.device_bytes is None
    assert "device_bytes" in plan.chosen.unknown
    assert sum(plan.chosen.breakdown.values()) == plan.chosen.host_bytes
    total, _ = counts(tiny().model, "full")
    assert plan.chosen.breakdown["weights"] + plan.chosen.breakdown["moments"] == 12 * total
    small = choose(tiny(), Machine(host=Host(ram_available_bytes=GIB // 2 + 1)), None)
    assert small.chosen is None
    assert small.candidates[0].verdict == "rejected"
    assert "too much" in small.candidates[0].reason


@pytest.mark.usefixtures("_cache")
def test_without_the_compiler_for_gpus_only_the_atlas_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.plan.compile.cuda_plugins", list)
    with pytest.raises(HarnessError) as caught:
        choose(changed(tiny(), {"train.seed": 11}), MACHINE, None, Ask(gpu="RTX A6000", recompile=True))
    assert caught.value.code == "no-target-compiler"
    assert "jax-cuda12-plugin" in caught.value.fix


@pytest.mark.usefixtures("_cache")
def test_a_recipe_that_cannot_be_compiled_is_one_error() -> None:
    torn = load_recipe(
        "smoke", ["model.action_expert.variant=gemma_300m"]
    )  # heads of another size than the language model's
    with pytest.raises(HarnessError) as caught:
        choose(torn, MACHINE, None, Ask(gpu="RTX A6000", recompile=True))
    assert caught.value.code == "compile-failed"


@pytest.mark.usefixtures("_cache")
def test_the_tiny_step_compiles_for_a_card_that_is_not_here() -> None:
    plan = choose(tiny(), MACHINE, None, Ask(gpu="RTX A6000", recompile=True))
    assert plan.chosen is not None
    assert plan.chosen.source == "compiled"
    assert set(plan.chosen.phases) == {"step", "init", "save"}
    assert plan.chosen.device_bytes == max(plan.chosen.phases.values())
