"""Tests that the real-size LoRA step compiles for one card without a GPU, and matches the shipped atlas.

This checks that the trainer's CUDA path lowers and compiles. It takes about a minute, so it is not run by
default: `ci/atlas`, or `python -m pytest -m real_size`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts import Host, Machine
from harness.plan.asked import Ask, Tools
from harness.plan.atlas import ALLOWANCE, shipped
from harness.plan.cards import CARDS
from harness.plan.choose import choose
from harness.plan.compile import Request, compiled
from harness.plan.need import not_asked
from harness.recipe.load import load_recipe


@pytest.mark.real_size
@pytest.mark.timeout(900)
def test_the_compiler_says_of_the_real_lora_step_what_the_atlas_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    recipe = load_recipe("pi05_libero_lora")
    plan = choose(
        recipe,
        Machine(host=Host()),
        None,
        Ask(gpu="rtx_4090"),
        tools=Tools(shipped(), not_asked),
        advise=False,
    )
    assert plan.chosen is not None
    assert plan.chosen.source == "atlas"
    kept = shipped().look_up(recipe, plan.chosen.levers)
    answer = compiled(Request(recipe=recipe, levers=plan.chosen.levers, target=CARDS["rtx_4090"].target()))
    assert kept is not None
    assert answer.program_sha256 == kept.program_sha256
    # Never more than the atlas promises, and at most twice the allowance below it.
    assert 0 <= kept.bytes["device"] - answer.bytes["device"] <= 2 * ALLOWANCE * kept.bytes["temp"]
