"""Tests the choice of a plan, with a formula in place of the compiler."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.artifacts import Disk, Gpu, GpuProcess, MigDevice
from harness.errors import HarnessError
from harness.plan import candidates
from harness.plan.asked import Ask, Tools
from harness.plan.atlas import shipped
from harness.plan.candidates import changed
from harness.plan.choose import choose
from harness.plan.compile import Answer, Request
from harness.plan.need import not_asked
from harness.recipe.schema import Recipe
from harness.units import GIB
from tests.support.planned import FULL, LORA, MACHINE, Formula, gpu, planned, with_gpus
from tests.support.situations import DATASET
from tests.support.tiny import tiny


@settings(deadline=None, max_examples=60)
@given(
    vram=st.floats(6, 200),
    ram=st.floats(8, 300),
    recipe=st.sampled_from([FULL, LORA]),
    batch=st.sampled_from([1, 6, 32, 250, 256]),
)
def test_a_chosen_plan_fits_and_a_rejected_one_says_by_how_much_it_does_not(
    vram: float, ram: float, recipe: Recipe, batch: int
) -> None:
    recipe = changed(recipe, {"train.global_batch": batch})
    plan = planned(recipe, gpu="rtx_a6000", vram_bytes=int(vram * GIB), host_ram_bytes=int(ram * GIB))
    assert plan.usable_bytes is not None
    assert plan.host_usable_bytes is not None
    for one in plan.candidates:
        levers = one.levers
        assert levers.microbatch * levers.accumulation_steps * levers.devices == batch
        assert one.device_bytes is not None
        assert one.host_bytes is not None
        fits = one.device_bytes <= plan.usable_bytes and one.host_bytes <= plan.host_usable_bytes
        assert (one.verdict == "fits") == fits
        assert fits or "too much" in one.reason
        assert sum(one.breakdown.values()) == one.device_bytes
        assert all(size >= 0 for size in one.breakdown.values())
        truth = Formula.bytes(Request(recipe=changed(recipe, one.changes), levers=levers))
        assert one.source != "counted" or one.device_bytes <= truth["device"]
        if one.source == "compiled" and one.verdict == "fits":
            assert one.phases["step"] == truth["device"]
            assert one.device_bytes == max(one.phases.values())
    if plan.chosen is not None:
        assert plan.chosen.verdict == "fits"
        assert bool(plan.chosen.changes) == bool(plan.chosen.deviations)
        # Nothing that deviates less fits.
        assert not [
            one
            for one in plan.candidates
            if one.verdict == "fits" and len(one.changes) < len(plan.chosen.changes)
        ]
        peers = [
            one.seconds_per_step
            for one in plan.candidates
            if one.verdict == "fits" and one.changes == plan.chosen.changes
        ]
        assert plan.chosen.seconds_per_step == min(s for s in peers if s is not None)
    else:
        assert plan.notes


@pytest.mark.parametrize("recipe", [FULL, LORA, tiny()], ids=lambda recipe: recipe.name)
def test_more_memory_never_deviates_more(recipe: Recipe) -> None:
    ladder = [tuple(changes) for changes in candidates.changes_of(recipe)]
    rungs = []
    for vram in (6, 8, 12, 16, 24, 32, 48, 80, 180):
        chosen = planned(recipe, gpu="rtx_a6000", vram_bytes=vram * GIB).chosen
        rungs.append(len(ladder) if chosen is None else ladder.index(tuple(chosen.changes)))
    assert rungs == sorted(rungs, reverse=True)
    assert rungs[-1] == 0


def test_an_exact_plan_is_chosen_before_every_approximate_one_and_the_compiler_is_asked_little() -> None:
    formula = Formula()
    plan = planned(FULL, compile=formula, gpu="rtx 4090", host_ram_bytes=128 * GIB)
    assert plan.chosen is not None
    assert plan.chosen.changes == {}
    assert plan.chosen.levers.host == ["ema", "moments", "masters"]
    assert plan.chosen.levers.microbatch > 1
    assert {one.source for one in plan.candidates if one.verdict == "rejected"} <= {"counted", "compiled"}
    assert len(formula.asked) <= 8


def test_host_memory_that_is_not_there_is_not_planned_with() -> None:
    """Nor is it with saves that are streamed: the state alone is 50 GiB."""
    plan = planned(FULL, gpu="rtx_4090", host_ram_bytes=48 * GIB)
    assert plan.chosen is not None
    assert plan.chosen.changes["train.ema_decay"] is None
    exact = next(
        one for one in plan.candidates if not one.changes and one.levers.host == ["ema", "moments", "masters"]
    )
    assert "of host memory" in exact.reason
    assert "too much" in exact.reason


def test_under_wsl_nothing_lies_in_host_memory_and_the_margin_is_larger() -> None:
    plain, wsl = (planned(FULL, with_gpus(gpu(), wsl=wsl)) for wsl in (False, True))
    assert plain.chosen is not None
    assert plain.chosen.levers.host
    assert all(not one.levers.host for one in wsl.candidates)
    assert wsl.margin_bytes == plain.margin_bytes + GIB
    assert any("WSL2" in note for note in wsl.notes)


def test_exact_refuses_and_names_the_smallest_card_or_says_that_it_does_not_know() -> None:
    plan = planned(FULL, gpu="rtx_3060", exact=True)
    assert plan.chosen is None
    assert all(not one.changes for one in plan.candidates)
    assert any("exactly" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("machine", "note"),
    [
        ({"ram_available_bytes": 32 * GIB}, "exactly beside 31.5 GiB of host memory: h100 "),
        (
            {"ram_available_bytes": 4 * GIB},
            "no single card of the table carries out recipe pi05_libero exactly",
        ),
        ({"wsl": True}, "exactly under WSL2 beside 255.5 GiB of host memory: h100 "),
    ],
    ids=["little host memory", "next to none", "WSL2"],
)
def test_the_smallest_card_is_one_for_this_host(machine: dict[str, object], note: str) -> None:
    """A card that needs parts of the state in host memory helps nobody whose host has no room for them."""
    card = gpu(name="NVIDIA GeForce RTX 4090", capability="8.9", total=24)
    plan = choose(FULL, with_gpus(card, **machine), None, tools=Tools(shipped(), not_asked))
    assert plan.chosen is None or plan.chosen.deviations
    assert any(note in each for each in plan.notes), plan.notes


def test_usable_is_what_is_free_less_context_and_margin_and_jax_gets_the_rest_of_the_card() -> None:
    plan = planned(LORA, with_gpus(gpu(free=40, reserved_bytes=GIB)))
    assert plan.free_bytes == 40 * GIB
    assert plan.usable_bytes == 40 * GIB - plan.context_bytes - plan.margin_bytes
    assert plan.memory_fraction is not None
    pool = plan.memory_fraction * 47 * GIB  # CUDA's total: NVML's less what the driver keeps
    assert plan.usable_bytes <= pool <= 40 * GIB - plan.context_bytes


def test_the_freest_of_several_cards_is_taken_and_who_holds_the_other_is_said() -> None:
    busy = gpu(
        0,
        "NVIDIA GeForce RTX 3090",
        total=24,
        free=1,
        foreign_processes=[GpuProcess(pid=4711, name="python", used_bytes=20 * GIB)],
    )
    plan = planned(LORA, with_gpus(busy, gpu(1, "NVIDIA GeForce RTX 3090", total=24)))
    assert plan.device_uuid == "GPU-1"
    assert plan.device_uuids == ["GPU-1"]
    assert any("4711" in note and "--wait" in note for note in plan.notes)


def test_a_card_without_bfloat16_does_not_keep_a_newer_one_from_its_work() -> None:
    old = gpu(0, "Quadro RTX 8000", "7.5")
    plan = planned(LORA, with_gpus(old, gpu(1, "NVIDIA GeForce RTX 4090", "8.9", total=24)))
    assert plan.device_uuids == ["GPU-1"]
    assert "Quadro RTX 8000 (GPU 0) is left out: it has no bfloat16 arithmetic" in plan.notes
    with pytest.raises(HarnessError) as caught:
        planned(LORA, with_gpus(old))
    assert caught.value.code == "gpu-too-old"


@pytest.mark.parametrize("name", ["NVIDIA RTX 4000 SFF Ada Generation", "NVIDIA RTX 8000 Something"])
def test_the_name_of_a_card_that_is_here_says_less_than_its_compute_capability(name: str) -> None:
    plan = planned(LORA, with_gpus(gpu(name=name, capability="8.9", total=20)))
    assert plan.device == name
    assert plan.chosen is not None


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda:1", ""])
def test_what_is_no_kind_of_device_is_refused(device: str) -> None:
    with pytest.raises(HarnessError) as caught:
        planned(tiny(), with_gpus(gpu()), device=device)
    assert caught.value.code == "device-unknown"


def test_cards_that_are_alike_work_together() -> None:
    plan = planned(FULL, with_gpus(*(gpu(index) for index in range(4))))
    assert plan.chosen is not None
    levers = plan.chosen.levers
    assert levers.devices == 4
    assert plan.device_uuids == [f"GPU-{index}" for index in range(4)]
    assert levers.microbatch * levers.accumulation_steps * 4 == 256


def test_devices_that_the_batch_cannot_feed_are_left_out_or_refused() -> None:
    three = planned(changed(LORA, {"train.global_batch": 32}), with_gpus(*(gpu(index) for index in range(3))))
    assert three.chosen is not None
    assert three.chosen.levers.devices == 2
    assert any("2 of 3" in note for note in three.notes)
    with pytest.raises(HarnessError) as caught:
        planned(changed(LORA, {"train.global_batch": 4}), gpu="a40:8")
    assert caught.value.code == "more-devices-than-rows"


@pytest.mark.parametrize("count", ["0", "-1", "x", ""])
def test_a_count_of_cards_is_a_number_from_one(count: str) -> None:
    with pytest.raises(HarnessError) as caught:
        planned(LORA, gpu=f"a40:{count}")
    assert caught.value.code == "gpu-count-invalid"


def test_a_card_that_is_not_in_the_table_is_matched_by_architecture_with_its_own_memory() -> None:
    plan = planned(
        LORA, with_gpus(gpu(name="NVIDIA GeForce RTX 4090 Laptop GPU", capability="8.9", total=16))
    )
    assert any("not in the table" in note for note in plan.notes)
    assert plan.usable_bytes is not None
    assert plan.usable_bytes < 16 * GIB
    assert plan.candidates[0].seconds_per_step is None
    assert "seconds_per_step" in plan.candidates[0].unknown


def test_a_mig_instance_is_a_device_of_its_own() -> None:
    part = MigDevice(
        uuid="MIG-1", name="NVIDIA A100-SXM4-80GB MIG 3g.40gb", total_bytes=40 * GIB, free_bytes=39 * GIB
    )
    other = part.model_copy(update={"uuid": "MIG-2", "visible": False})
    card = Gpu(
        index=0,
        name="NVIDIA A100-SXM4-80GB",
        compute_capability="8.0",
        mig_mode=True,
        mig_devices=[other, part],
    )
    plan = planned(LORA, with_gpus(card))
    assert plan.device_uuids == ["MIG-1"]
    assert plan.free_bytes == 39 * GIB


@pytest.mark.parametrize(
    ("card", "code"),
    [
        (
            Gpu(
                index=0,
                name="NVIDIA L4",
                compute_capability="8.9",
                unknown={"free_bytes": "NVML contradicts itself"},
            ),
            "gpu-memory-unknown",
        ),
        (gpu(name="Tesla V100", capability="7.0", total=32), "gpu-too-old"),
        (gpu(name="a new card").model_copy(update={"compute_capability": None}), "gpu-unknown"),
    ],
    ids=["free bytes unknown", "no bfloat16", "neither name nor capability"],
)
def test_a_card_about_which_too_little_is_known_is_refused(card: Gpu, code: str) -> None:
    with pytest.raises(HarnessError) as caught:
        planned(LORA, with_gpus(card))
    assert caught.value.code == code


def test_the_memory_that_nvml_does_not_tell_can_be_said() -> None:
    card = Gpu(
        index=0, name="NVIDIA L4", compute_capability="8.9", unknown={"free_bytes": "NVML contradicts itself"}
    )
    plan = planned(LORA, with_gpus(card), vram_bytes=20 * GIB)
    assert plan.free_bytes == 20 * GIB


def test_an_integrated_gpu_has_the_hosts_memory() -> None:
    card = Gpu(index=0, name="NVIDIA GB10", uuid="GPU-0", compute_capability="12.1", integrated=True)
    plan = planned(LORA, with_gpus(card, ram_available_bytes=100 * GIB, ram_total_bytes=120 * GIB))
    assert plan.free_bytes == 100 * GIB


@pytest.mark.parametrize("tokens", [0, -5, 10**30])
def test_a_received_dataset_with_impossible_prompts_is_refused(tokens: int) -> None:
    strange = DATASET.model_copy(update={"prompt_tokens": tokens})
    with pytest.raises(HarnessError) as caught:
        choose(LORA, MACHINE, strange, Ask(gpu="a40"), tools=Tools(None, Formula()))
    assert caught.value.code == "artifact-invalid"


def test_a_full_disk_is_no_reason_for_another_experiment() -> None:
    """The doctor's matter: the plan tells how much it needs."""
    room, none = (
        planned(LORA, with_gpus(gpu(), disks=[Disk(path="/", free_bytes=free)])) for free in (2**60, 0)
    )
    assert room.chosen is not None
    assert none.chosen == room.chosen
    assert (none.chosen.disk_bytes or 0) > GIB


def test_the_reason_why_no_gpu_can_be_used_comes_with_its_own_mend() -> None:
    lost = MACHINE.model_copy(
        update={"gpu_error": "NVML: Unknown Error: lost", "gpu_fix": "start the container again"}
    )
    with pytest.raises(HarnessError) as caught:
        planned(FULL, lost)
    assert caught.value.fix == "start the container again"
    with pytest.raises(HarnessError) as caught:
        planned(FULL, lost.model_copy(update={"gpu_missing": True}))
    assert (
        "start the container again; or harness plan --recipe pi05_libero --gpu rtx_4090" in caught.value.fix
    )


def test_broken_and_hidden_gpus_are_not_used() -> None:
    machine = MACHINE.model_copy(update={"gpus": [Gpu(index=0, error="lost"), Gpu(index=1, visible=False)]})
    assert planned(tiny(), machine).device == "cpu"


def test_a_full_fine_tune_of_the_real_size_never_lands_on_the_cpu_by_itself() -> None:
    with pytest.raises(HarnessError) as caught:
        planned(FULL)
    assert caught.value.code == "no-gpu"
    assert caught.value.got == "no driver"


def test_asking_for_cuda_without_a_gpu_is_refused_also_for_a_tiny_model() -> None:
    with pytest.raises(HarnessError) as caught:
        planned(tiny(), device="cuda")
    assert caught.value.code == "no-gpu"


def test_a_card_that_jax_cannot_start_on_is_compiled_for_by_its_description() -> None:
    class Gone(Formula):
        def __call__(self, request: Request, **_: object) -> Answer:
            if request.target is None:
                raise HarnessError("compile-failed", "no CUDA here", fix="none")
            return super().__call__(request)

    assert planned(LORA, with_gpus(gpu()), compile=Gone()).chosen is not None


def test_moments_that_cannot_be_streamed_stay_on_the_device() -> None:
    plan = planned(changed(FULL, {"train.optimizer.moments": "bfloat16"}), gpu="rtx_4090")
    assert all("moments" not in one.levers.host for one in plan.candidates if not one.changes)
