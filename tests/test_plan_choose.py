"""The plan: XLA's figure for the real step, for the host and for a card that is not here."""

from __future__ import annotations

import pytest

from harness.artifacts import Gpu, Host, Machine
from harness.errors import HarnessError
from harness.parameters import counts
from harness.plan.choose import choose
from harness.recipe import load_recipe
from harness.units import GIB
from tests.tiny import tiny

MACHINE = Machine(host=Host(ram_available_bytes=8 * GIB), gpu_error="no driver")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # One directory for all: an answer that has not changed is not compiled again.
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path_factory.getbasetemp() / "plans"))


def test_on_a_cpu_the_compiled_bytes_are_host_bytes_and_their_parts_add_up() -> None:
    plan = choose(tiny(), MACHINE, None)
    assert plan.chosen is not None
    assert plan.device == "cpu"
    assert plan.chosen.device_bytes is None
    assert "device_bytes" in plan.chosen.unknown
    assert sum(plan.chosen.breakdown.values()) == plan.chosen.host_bytes
    total, _ = counts(tiny().model, "full")
    assert plan.chosen.breakdown["state and batch"] > 16 * total  # parameters, two moments, average, in float32


def test_a_small_host_is_told_how_much_is_missing() -> None:
    small = Machine(host=Host(ram_available_bytes=GIB // 2 + 1))
    plan = choose(tiny(), small, None)
    assert plan.chosen is None
    assert plan.candidates[0].verdict == "rejected"
    assert "too much" in plan.candidates[0].reason


def test_the_real_lora_step_lowers_and_compiles_for_a_gpu_that_is_not_here() -> None:
    """Real size, real CUDA compiler: XLA's figure for LoRA at batch 1, which lies above its bare weights and far below 24 GiB."""
    recipe = load_recipe("pi05_libero_lora", ["train.global_batch=1"])
    plan = choose(recipe, MACHINE, None, gpu="RTX A6000")
    assert plan.chosen is not None
    need = plan.chosen.device_bytes
    assert need is not None
    total, trained = counts(recipe.model, "lora")
    assert 12 * trained + 2 * (total - trained) < need < 20 * GIB
    assert plan.chosen.source == "compiled"
    assert plan.usable_bytes is not None
    assert 45 * GIB < plan.usable_bytes < 48 * GIB


def test_a_full_fine_tune_of_the_real_size_never_lands_on_the_cpu_by_itself() -> None:
    with pytest.raises(HarnessError) as caught:
        choose(load_recipe("pi05_libero"), MACHINE, None)
    assert caught.value.code == "no-gpu"
    assert caught.value.got == "no driver"


def test_asking_for_cuda_without_a_gpu_is_refused_also_for_a_tiny_model() -> None:
    with pytest.raises(HarnessError) as caught:
        choose(tiny(), MACHINE, None, device="cuda")
    assert caught.value.code == "no-gpu"


def test_broken_and_hidden_gpus_are_not_used() -> None:
    machine = MACHINE.model_copy(update={"gpus": [Gpu(index=0, error="lost"), Gpu(index=1, visible=False)]})
    assert choose(tiny(), machine, None).device == "cpu"
