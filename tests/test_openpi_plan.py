"""Tests the planner's figures for openpi's own trainer against compiled figures and the table's own rows."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from harness.artifacts import Gpu, Host, Machine, Plan
from harness.cli import app
from harness.errors import HarnessError
from harness.openpi import table as upstream
from harness.openpi.plan import options, place_of, plan_upstream, setup_of
from harness.openpi.table import Adapters, Setup, initialization, need, rows, state_parts, steps
from harness.plan.place import absent
from harness.recipe.load import load_recipe
from harness.recipe.schema import Trained
from harness.units import GIB

# Upstream's step as it is shipped, compiled for an RTX A6000: adapters, trained, average, {batch: GiB}.
# Rounded to 0.1 GiB.
COMPILED: list[tuple[Adapters, Trained, bool, dict[int, float]]] = [
    ("none", "full", True, {8: 65.7, 32: 68.8, 256: 130.4}),
    ("none", "full", False, {1: 52.3, 8: 53.2, 32: 56.3, 64: 63.6}),
    ("paligemma", "full", True, {8: 65.9}),
    ("both", "lora", False, {1: 16.1, 8: 18.4, 32: 21.3, 64: 30.9}),
    ("both", "lora_frozen_vision", False, {8: 9.6, 32: 15.9}),
    ("none", "action_expert", False, {32: 18.5}),
]
ADAPTED = ["model.paligemma.lora={rank: 16, alpha: 16.0}"]


def plan_for(gpu: str | None, *sets: str, recipe: str = "pi05_libero", vram_gib: float | None = None) -> Plan:
    fsdp, overrides = options(sets)
    asked = load_recipe(recipe, overrides)
    place = place_of(
        asked,
        None,
        gpu=gpu,
        vram_bytes=None if vram_gib is None else int(vram_gib * GIB),
        host_ram_bytes=None,
        fsdp=fsdp,
    )
    return plan_upstream(asked, place, fsdp)


@pytest.mark.parametrize(
    ("setup", "gib"),
    [
        (Setup(adapters, trained, ema, batch), gib)
        for adapters, trained, ema, sizes in COMPILED
        for batch, gib in sizes.items()
    ],
)
def test_bytes_are_those_of_the_compiler(setup: Setup, gib: float) -> None:
    assert need(setup).bytes == pytest.approx(gib * GIB, rel=0.03)


def test_two_shards_of_the_published_recipe() -> None:
    assert need(Setup("none", "full", True, 256, 2, 2)).bytes == pytest.approx(72.8 * GIB, rel=0.03)


@pytest.mark.parametrize("row", [row for row in steps() if row.arguments], ids=str)
def test_the_counted_state_is_what_the_compiler_takes_as_arguments(row: upstream._Row) -> None:
    images = 3 * 224 * 224 * 3 * 4
    assert row.arguments is not None
    assert sum(state_parts(row.setup).values()) + images * row.batch // row.devices == pytest.approx(
        row.arguments, rel=2e-3
    )


def test_the_counted_initialization_is_the_compilers() -> None:
    compiled = [row for row in rows() if row.phase == "init"]
    assert compiled
    for row in compiled:
        assert initialization(row.setup) == pytest.approx(row.bytes, rel=1e-3)


@pytest.mark.parametrize("row", [row for row in steps() if row.source == "compiled"], ids=str)
def test_without_its_row_no_answer_is_below_the_compiler(
    row: upstream._Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compiled row is taken away, and what is then said of it must not be less."""
    others = [other for other in steps() if other.setup != row.setup]
    monkeypatch.setattr(upstream, "steps", lambda: others)
    larger = any(
        other.batch > row.batch
        and other.setup._replace(batch=0, ema=False) == row.setup._replace(batch=0, ema=False)
        for other in others
    )
    if row.devices == 1 and row.trained != "full" and not larger:
        with pytest.raises(HarnessError, match="upstream-not-compiled"):
            need(row.setup)
        return
    answer = need(row.setup)
    assert answer.source == "interpolated"
    assert answer.how
    assert answer.bytes >= row.bytes * 0.999


def test_more_samples_never_need_less() -> None:
    for adapters, trained, ema, _ in COMPILED:
        sizes = [need(Setup(adapters, trained, ema, batch)).bytes for batch in range(1, 33)]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("gpu", "vram_gib", "recipe", "sets", "fits"),
    [
        ("rtx_4090", None, "pi05_libero_lora", ["global_batch=8"], True),
        ("rtx_3090", None, "pi05_libero_lora", ["global_batch=8"], True),
        (None, 24, "pi05_libero_lora", ["global_batch=8"], True),
        ("rtx_4090", None, "pi05_libero_lora", ["global_batch=64"], False),
        ("rtx_3060", None, "pi05_libero_lora", ["global_batch=1"], False),
        ("rtx_a6000", None, "pi05_libero", ["global_batch=1", "ema=off"], False),
        (None, 48, "pi05_libero", ["global_batch=1", "ema=off"], False),
        ("a100_80", None, "pi05_libero", ["global_batch=32", "ema=off"], True),
        ("h100", None, "pi05_libero", ["global_batch=32", "ema=off"], True),
        (None, 80, "pi05_libero", ["global_batch=32", "ema=off"], True),
        ("a100_80", None, "pi05_libero", ["global_batch=32"], True),
        ("a100_80:2", None, "pi05_libero", ["fsdp=2"], False),
        ("a100_80", None, "pi05_libero", ["fsdp=2"], False),
        ("a100_80:8", None, "pi05_libero", ["fsdp=8"], True),
    ],
)
def test_what_fits_where(
    gpu: str | None, vram_gib: float | None, recipe: str, sets: list[str], fits: bool
) -> None:
    made = plan_for(gpu, *sets, recipe=recipe, vram_gib=vram_gib)
    assert (made.chosen is not None) == fits
    assert made.candidates[0].verdict == ("fits" if fits else "rejected")
    levers = made.candidates[0].levers
    assert (levers.prompt_tokens, len(levers.cameras)) == (200, 3)


def test_the_reports_command_is_recognized_and_refused() -> None:
    made = plan_for("rtx_a6000", *ADAPTED, "global_batch=8")
    candidate = made.candidates[0]
    assert made.chosen is None
    assert candidate.device_bytes == pytest.approx(65.9 * GIB, rel=0.03)
    assert made.parameters_trained == made.parameters_total == 3_381_303_056
    assert "3,381,303,056" in candidate.reason
    assert "872,771,344" in candidate.reason


def test_real_lora_is_not_explained_as_a_mistake() -> None:
    made = plan_for("rtx_4090", "global_batch=8", recipe="pi05_libero_lora")
    assert made.chosen is not None
    assert made.parameters_trained == 466_957_072
    assert "not LoRA" not in made.chosen.reason


def test_the_parts_of_the_memory_add_up() -> None:
    frozen = ["fsdp=8", "global_batch=8", "train.trained=lora_frozen_vision"]
    for gpu, recipe, sets in (
        ("a100_80", "pi05_libero", ["global_batch=32"]),
        ("a100_80:8", "pi05_libero", ["fsdp=8"]),
        ("rtx_3060:8", "pi05_libero_lora", frozen),
    ):
        candidate = plan_for(gpu, *sets, recipe=recipe).candidates[0]
        assert candidate.device_bytes == sum(candidate.breakdown.values())
        assert all(size >= 0 for size in candidate.breakdown.values())
        assert candidate.device_bytes == max(candidate.phases.values())


def test_devices_are_as_many_as_shards_unless_a_count_is_said() -> None:
    recipe = load_recipe("pi05_libero")
    ask = {"vram_bytes": None, "host_ram_bytes": None}
    assert place_of(recipe, None, gpu="a100_80", fsdp=4, **ask).devices == 4
    assert place_of(recipe, None, gpu="a100_80:8", fsdp=2, **ask).devices == 8
    assert place_of(recipe, None, gpu="a100_80", fsdp=None, **ask).devices == 1


def test_usable_is_upstreams_pool_and_adds_up() -> None:
    made = plan_for("a100_80", "global_batch=32")
    assert made.usable_bytes == int(0.9 * 85_100_068_864)
    assert made.free_bytes is not None
    assert made.usable_bytes == made.free_bytes - made.context_bytes - made.margin_bytes


@pytest.mark.parametrize(
    ("sets", "recipe", "code"),
    [
        (["global_batch=512"], "pi05_libero", "upstream-not-compiled"),
        (["global_batch=512", "fsdp=2"], "pi05_libero", "upstream-not-compiled"),
        (["model.paligemma.lora=null"], "pi05_libero_lora", "upstream-not-compiled"),
        (["global_batch=3", "fsdp=2"], "pi05_libero", "batch-not-divisible"),
        (["global_batch=4", "fsdp=8"], "pi05_libero", "batch-not-divisible"),
        (["fsdp=0"], "pi05_libero", "override-invalid"),
        (["fsdp=two"], "pi05_libero", "override-invalid"),
        (["globalbatch=8"], "pi05_libero", "override-invalid"),
        (["global_batch"], "pi05_libero", "override-invalid"),
        (["model.paligemma-variant=gemma_300m"], "pi05_libero", "override-invalid"),
        (["global_batch=0"], "pi05_libero", "recipe-invalid"),
        (["global_batch=eight"], "pi05_libero", "recipe-invalid"),
        (["train.optimizer.moments=int8"], "pi05_libero", "upstream-cannot"),
        (["train.frozen=int4"], "pi05_libero_lora", "upstream-cannot"),
        (["model.paligemma.lora={rank: 8, alpha: 8.0}"], "pi05_libero_lora", "upstream-cannot"),
        (["model.prompt_tokens=48"], "pi05_libero", "upstream-not-compiled"),
        (["model.action_horizon=50"], "pi05_libero", "upstream-not-compiled"),
        ([], "smoke", "upstream-not-compiled"),
    ],
)
def test_what_upstream_cannot_or_nobody_compiled_is_said(sets: list[str], recipe: str, code: str) -> None:
    with pytest.raises(HarnessError) as caught:
        plan_for("a100_80", *sets, recipe=recipe)
    assert caught.value.code == code
    assert caught.value.fix


def test_shards_that_do_not_divide_the_devices() -> None:
    with pytest.raises(HarnessError) as caught:
        plan_for("a100_80:4", "fsdp=3")
    assert caught.value.code == "shards-not-divisible"


@pytest.mark.parametrize(
    ("said", "meant"),
    [("ema=off", "null"), ("ema=on", "0.999"), ("ema=0.99", "0.99"), ("ema=null", "null")],
)
def test_the_average_is_switched(said: str, meant: str) -> None:
    assert options([said]) == (None, [f"train.ema_decay={meant}"])


@pytest.mark.parametrize(
    "sets",
    [
        ["model.paligemma-variant=gemma_2b_lora", "batch-size=8"],
        ["model.paligemma_variant=gemma_2b_lora", "batch_size=8"],
        ["--model.paligemma-variant=gemma_2b_lora", "global_batch=8", "ema_decay=0.999"],
        [*ADAPTED, "train.global_batch=8"],
    ],
)
def test_the_reports_options_in_upstreams_words(sets: list[str]) -> None:
    made = plan_for("rtx_a6000", *sets)
    assert made.candidates[0].device_bytes == pytest.approx(65.9 * GIB, rel=0.03)
    assert made.parameters_trained == 3_381_303_056


def test_recipe_paths_pass() -> None:
    assert options(["train.seed=7", "fsdp=2", "name=x"]) == (2, ["train.seed=7", "name=x"])


def test_the_setup_is_the_recipes() -> None:
    lora = setup_of(load_recipe("pi05_libero_lora", ["train.global_batch=16"]), 2, 2)
    assert lora == Setup("both", "lora", False, 16, 2, 2)
    assert setup_of(load_recipe("pi05_libero"), 1, 1) == Setup("none", "full", True, 256)


def test_the_verb_answers_with_its_exit_code() -> None:
    command = ["plan", "--backend", "openpi", "--gpu", "rtx_a6000", "--json"]
    refused = CliRunner().invoke(app, [*command, "--set", "global_batch=8"])
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["candidates"][0]["device_bytes"] == pytest.approx(65.7 * GIB, rel=0.03)
    taken = CliRunner().invoke(
        app, [*command, "--recipe", "pi05_libero_lora", "--set", "global_batch=8", "--set", "fsdp=1"]
    )
    assert taken.exit_code == 0
    assert Plan.model_validate_json(taken.stdout).chosen is not None


def test_an_absent_card_is_idle() -> None:
    assert absent("a100_80", None, None).free_bytes == 85_100_068_864


def machine_with(count: int, free: int) -> Machine:
    card = {
        "name": "NVIDIA RTX A6000",
        "compute_capability": "8.6",
        "total_bytes": 48 * GIB,
        "free_bytes": free,
    }
    return Machine(
        gpus=[Gpu(index=index, uuid=f"GPU-{index}", **card) for index in range(count)], host=Host()
    )


def test_upstream_takes_all_cards_of_this_machine() -> None:
    recipe = load_recipe("pi05_libero_lora", ["train.global_batch=8"])
    place = place_of(
        recipe, machine_with(2, 47 * GIB), gpu=None, vram_bytes=None, host_ram_bytes=None, fsdp=None
    )
    made = plan_upstream(recipe, place, None)
    assert made.candidates[0].levers.devices == 2
    assert made.candidates[0].levers.microbatch == 4
    assert made.device_uuids == ["GPU-0", "GPU-1"]
    with pytest.raises(HarnessError) as caught:
        plan_upstream(recipe, place, 4)
    assert caught.value.code == "shards-not-divisible"


def test_what_others_hold_is_not_usable() -> None:
    recipe = load_recipe("pi05_libero_lora", ["train.global_batch=8"])
    for free, fits in ((47 * GIB, True), (15 * GIB, False)):
        place = place_of(
            recipe, machine_with(1, free), gpu=None, vram_bytes=None, host_ram_bytes=None, fsdp=None
        )
        assert (plan_upstream(recipe, place, None).chosen is not None) == fits


def test_no_card_is_said() -> None:
    with pytest.raises(HarnessError) as caught:
        place_of(
            load_recipe("pi05_libero"),
            Machine(host=Host()),
            gpu=None,
            vram_bytes=None,
            host_ram_bytes=None,
            fsdp=None,
        )
    assert caught.value.code == "no-gpu"
    assert "--gpu" in caught.value.fix
