"""Tests the cards that clouds rent.

Covered are their names as clouds spell them, their figures, a plan for each from the atlas, and the reason
for cards that are too old.
"""

from __future__ import annotations

import re

import pytest

from harness.artifacts import Host, Machine, Plan
from harness.errors import HarnessError
from harness.plan import cards
from harness.plan.asked import Ask, Tools
from harness.plan.atlas import shipped
from harness.plan.cards import CARDS, card, find
from harness.plan.choose import choose
from harness.plan.cost import peak_flops
from harness.plan.more_cards import OTHERS
from harness.plan.need import not_asked
from harness.plan.place import option_for
from harness.recipe.load import load_recipe
from harness.units import GIB, MIB
from tests.support.planned import Formula

NOWHERE = Machine(host=Host())
RENTED = [
    "a10", "a10g", "a30", "l20", "l40", "rtx_4060_ti_16", "rtx_4070_ti", "rtx_4070_ti_super",
    "rtx_4080_super", "rtx_4090_d", "rtx_5070_ti", "rtx_5080",
    "rtx_3080_12", "rtx_3080_ti", "a800_40", "a800_80", "h100_pcie", "h100_nvl", "h800", "h20", "gh200",
    "gb10", "gb300", "jetson_thor",
]  # fmt: skip


def from_the_atlas(name: str, recipe: str, **asked: int) -> Plan:
    return choose(
        load_recipe(recipe),
        NOWHERE,
        None,
        Ask(gpu=name, **asked),
        tools=Tools(shipped(), not_asked),
        advise=False,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a10g", "a10g"), ("A10G-24GB", "a10g"), ("NVIDIA A10G", "a10g"), ("nvidia-a10g", "a10g"),
        ("A10", "a10"), ("NVIDIA A10 24GiB", "a10"),
        ("rtx4060ti-16g", "rtx_4060_ti_16"), ("RTX 4060 Ti 8GB", "rtx_4060_ti_8"),
        ("NVIDIA GeForce RTX 4070 Ti", "rtx_4070_ti"),
        ("RTX_4070S_Ti", "rtx_4070_ti_super"), ("RTX 4070 Ti SUPER", "rtx_4070_ti_super"),
        ("RTX_4080S", "rtx_4080_super"), ("4090D", "rtx_4090_d"),
        ("NVIDIA GeForce RTX 4090 D", "rtx_4090_d"), ("NVIDIA GeForce RTX 5080", "rtx_5080"),
        ("5070 Ti", "rtx_5070_ti"),
        ("RTX 3080", "rtx_3080"), ("RTX 3080 12GB", "rtx_3080_12"), ("rtx-3080-ti", "rtx_3080_ti"),
        ("NVIDIA L40", "l40"), ("l20", "l20"), ("A30", "a30"),
        ("H20", "h20"), ("NVIDIA H20 96GB", "h20"), ("A800-SXM4-80GB", "a800_80"),
        ("NVIDIA A800 40GB Active", "a800_40"), ("H800", "h800"),
        ("NVIDIA H800 PCIe", "h800_pcie"), ("H100 PCIe", "h100_pcie"), ("NVIDIA H100 NVL", "h100_nvl"),
        ("nvidia-h100-80gb", "h100"), ("GB10", "gb10"),
        ("DGX Spark", "gb10"), ("NVIDIA GB10", "gb10"), ("Jetson AGX Thor", "jetson_thor"),
        ("RTX 6000 Ada", "rtx_6000_ada"), ("nvidia-l4", "l4"),
        ("RTX 6000 PRO", "rtx_pro_6000"), ("RTX 6000 Pro Blackwell", "rtx_pro_6000"),
        ("RTX PRO 6000 WS", "rtx_pro_6000"), ("DGX Spark GB10", "gb10"),
        ("NVIDIA GH200 120GB", "gh200"), ("NVIDIA GH200 96GB HBM3", "gh200"),
        ("Jetson Thor T5000", "jetson_thor"), ("NVIDIA B200 180GB HBM3e", "b200"), ("B200 192GB", "b200"),
        ("B300 288GB", "b300"), ("NVIDIA GB200 NVL72", "gb200"), ("RTX 5060 8GB", "rtx_5060"),
        ("RTX 6000 Blackwell", "rtx_pro_6000"), ("Quadro RTX A6000", "rtx_a6000"),
        ("RTX PRO 5000", "rtx_pro_5000"), ("H200 NVL 141GB", "h200_nvl"), ("NVIDIA GB300 NVL", "gb300"),
    ],
)  # fmt: skip
def test_names_are_read_as_clouds_spell_them(written: str, name: str) -> None:
    assert find(written) == name


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_card_is_found_by_its_key_and_by_what_the_driver_calls_it_and_by_nothing_else(name: str) -> None:
    assert find(name) == find(OTHERS[name].device) == name
    spellings = {key: each.spelling for key, each in CARDS.items()} | {
        key: each.spelling for key, each in OTHERS.items()
    }
    assert [key for key, spelling in spellings.items() if re.fullmatch(spelling, name.replace("_", ""))] == [
        name
    ]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_its_figures_are_its_own_and_hang_together(name: str) -> None:
    other, figures = OTHERS[name], card(name)
    assert figures.device == other.device
    assert figures.capability <= other.capability, (
        "code for its own architecture, or for the newest before it, runs on it"
    )
    assert figures.memory_bytes <= other.driver_mib * MIB
    assert figures.memory_bytes > 0.94 * other.driver_mib * MIB
    assert peak_flops(figures) == other.tflops * 1e12
    # No card moves a byte for fewer than 15 or more than 700 operations: a slip of a digit would.
    assert 30 < other.tflops * 1e3 / other.bandwidth < 1000
    assert f"device_memory_size: {figures.memory_bytes}" in figures.target()


def test_the_driver_keeps_no_more_of_a_card_than_is_assumed() -> None:
    for name, known in CARDS.items():
        total = known.driver_mib * MIB
        assert (
            known.cuda_bytes is None
            or total - known.cuda_bytes <= cards._kept_by_the_driver(total) + 80 * MIB
        ), name


@pytest.mark.parametrize("recipe", ["pi05_libero", "pi05_libero_lora"])
@pytest.mark.parametrize("name", RENTED)
def test_a_plan_before_renting_is_answered_from_the_atlas(name: str, recipe: str) -> None:
    plan = from_the_atlas(name, recipe)
    assert plan.chosen is not None
    assert plan.chosen.source in ("atlas", "interpolated")
    assert plan.chosen.seconds_per_step is not None
    assert plan.device == name


@pytest.mark.parametrize(
    ("written", "capability"),
    [
        ("T4", "7.5"), ("Tesla T4", "7.5"), ("nvidia-tesla-t4", "7.5"), ("T4G", "7.5"), ("V100", "7.0"),
        ("Tesla V100-SXM2-32GB", "7.0"), ("P100", "6.0"),
        ("P40", "6.1"), ("RTX 2080 Ti", "7.5"), ("NVIDIA GeForce RTX 2070 SUPER", "7.5"),
        ("Quadro RTX 6000", "7.5"), ("Q_RTX_8000", "7.5"),
        ("Quadro RTX 5000", "7.5"), ("TITAN RTX", "7.5"), ("TITAN V", "7.0"), ("GTX 1080 Ti", "6.1"),
        ("GTX 1660 Super", "7.5"), ("K80", "3.7"),
        ("M60", "5.2"), ("Tesla M40", "5.2"), ("Tesla M4", "5.2"), ("V100 32GB", "7.0"), ("P40 24GB", "6.1"),
        ("GeForce GTX TITAN X", "5.2"),
        ("RTX 6000 24GB", "7.5"), ("GRID T4-16Q", "7.5"), ("Jetson AGX Xavier", "7.2"),
    ],
)  # fmt: skip
def test_a_card_without_bfloat16_is_refused_with_the_reason(written: str, capability: str) -> None:
    for asked in ({}, {"vram_bytes": 40 * GIB}):
        with pytest.raises(HarnessError) as caught:
            from_the_atlas(written, "pi05_libero_lora", **asked)
        assert caught.value.code == "gpu-too-old"
        assert capability in (caught.value.got or "")
        assert "bfloat16" in caught.value.what


@pytest.mark.parametrize(
    ("written", "capability"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "8.9"), ("RTX 3080 Laptop", "8.6"), ("A100", "8.0"),
        ("RTX 4090 48GB", "8.9"), ("RTX 2000 Ada", "8.9"),
        ("RTX A2000", "8.6"), ("H200 PCIe", "9.0"), ("RTX PRO 4500 Blackwell", "12.0"),
        ("GB200 144GB", "10.0"),
        ("L2", "8.9"), ("RTX 5050", "12.0"), ("NVIDIA RTX 4000 SFF Ada Generation", "8.9"),
        ("A100 64GB", "8.0"),
        ("A30 48GB", "8.0"), ("A1000", "8.6"), ("NVIDIA H100 80GB HBM2e", "9.0"), ("H100 96GB", "9.0"),
        ("GRID A100-40C", "8.0"),
        ("NVIDIA GH200 144G HBM3e", "9.0"), ("H20-3e", "9.0"), ("H20 141GB", "9.0"),
        ("L40-48C", "8.9"), ("NVIDIA L4-24Q", "8.9"), ("NVIDIA A16-2Q", "8.6"), ("NVIDIA A100D-1-10C", "8.0"),
        ("NVIDIA GeForce RTX 2050", "8.6"), ("NVIDIA RTX 500 Ada Generation Laptop GPU", "8.9"),
        ("NVIDIA RTX 2000E Ada Generation", "8.9"), ("NVIDIA Jetson T4000", "10.0"),
        ("GB300-WS", "10.0"), ("RTX PRO 5000 72GB", "12.0"),
    ],
)  # fmt: skip
def test_a_card_of_a_known_series_is_planned_for_once_its_memory_is_said(
    written: str, capability: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        find(written)
    assert caught.value.code == "gpu-unknown"
    assert "--vram-gib" in caught.value.fix
    plan = choose(
        load_recipe("pi05_libero_lora"),
        NOWHERE,
        None,
        Ask(gpu=written, vram_bytes=24 * GIB),
        tools=Tools(None, Formula()),
    )
    assert plan.free_bytes == 24 * GIB
    assert plan.chosen is not None
    assert any("not in the table" in note for note in plan.notes)
    stands = cards.of_series(written, 24 * GIB)
    assert stands is not None
    assert "{}.{}".format(*stands.capability) == capability


def test_a_board_of_a_series_that_shares_the_hosts_memory_is_planned_as_one() -> None:
    orin = cards.of_series("Jetson AGX Orin 32GB", 32 * GIB)
    ada = cards.of_series("RTX 2000 Ada", 16 * GIB)
    assert (orin is not None and orin.shared, ada is not None and ada.shared) == (True, False)


@pytest.mark.parametrize(
    ("written", "owner"),
    [
        ("M4 Max", "Apple"),
        ("M4", "Apple"),
        ("Apple M3 Ultra", "Apple"),
        ("7900 XTX", "AMD"),
        ("A770", "Intel"),
        ("B580", "Intel"),
        ("Arc Pro B60", "Intel"),
        ("B60", "Intel"),
        ("HL-225", "Intel"),
        ("gfx942", "AMD"),
        ("R9700", "AMD"),
        ("Ryzen AI Max+ 395", "AMD"),
    ],
)
def test_a_card_of_another_maker_is_told_as_such(written: str, owner: str) -> None:
    with pytest.raises(HarnessError) as caught:
        find(written)
    assert caught.value.code == "gpu-not-nvidia"
    assert owner in caught.value.what


@pytest.mark.parametrize("name", sorted([*CARDS, *OTHERS]))
def test_a_name_without_its_size_is_the_card_of_that_memory(name: str) -> None:
    # NVML calls both sizes of an RTX 4060 Ti by one name, and so do people with --vram-gib.
    figures = card(name)
    for total in (figures.driver_mib * MIB, figures.memory_bytes):
        for device in (figures.device, re.sub(r" \d+GB$", "", figures.device)):
            assert cards.sized(device, total) == name


def test_a_memory_that_no_card_of_the_name_has_changes_no_card() -> None:
    assert cards.sized("NVIDIA GeForce RTX 4090", 48 * GIB) == "rtx_4090"
    with pytest.raises(HarnessError, match="gpu-unknown"):
        cards.sized("A100", 64 * GIB)
    plan = from_the_atlas("4060 Ti", "pi05_libero_lora", vram_bytes=16 * GIB)
    assert plan.chosen is not None
    assert plan.chosen.seconds_per_step is not None


@pytest.mark.parametrize(
    "written", ["", "RTX 6000 48GB", "NVIDIA RTX 6000D", "p4d.24xlarge", "a2-highgpu-1g"]
)
def test_a_name_that_tells_no_card_is_unknown_and_not_guessed(written: str) -> None:
    with pytest.raises(HarnessError) as caught:
        from_the_atlas(written, "pi05_libero_lora", vram_bytes=48 * GIB)
    assert caught.value.code == "gpu-unknown"


def test_without_a_known_series_the_memory_does_not_help() -> None:
    with pytest.raises(HarnessError) as caught:
        from_the_atlas("a toaster", "pi05_libero_lora", vram_bytes=24 * GIB)
    assert caught.value.code == "gpu-unknown"


@pytest.mark.parametrize(
    ("device", "option"),
    [
        ("2 x a100_80", "--gpu a100_80:2"),
        ("rtx_4090", "--gpu rtx_4090"),
        ("a card of 24.0 GiB", "--vram-gib 24.0"),
        ("NVIDIA L4", "--gpu 'NVIDIA L4'"),
    ],
)
def test_a_device_as_a_plan_names_it_is_asked_for_by_an_option(device: str, option: str) -> None:
    assert option_for(device) == option
