"""Further cards, beside those of `plan.cards`, and the series that a card's name belongs to.

Only the figures that a plan needs are known of these cards: memory, bandwidth, operations. The compiler's
other figures are those of a stand-in from `plan.cards`: the card of the same compute capability that is
nearest in memory. The atlas answers for them as for all cards.

Source: capability: NVIDIA, "CUDA GPU Compute Capability". driver_mib: nvidia-smi tables published by owners.
bandwidth (GB/s) and tflops (dense bfloat16, accumulated in float32): NVIDIA's data sheet or page of the card;
half of the figure if only figures with sparsity are given. GeForce: tensor operations a clock x boost clock
as in `plan.cost`. A10G: 70, by AWS and NVIDIA's brief (half an A10's). Boards that share the host's memory:
what the kernel leaves (`free` of owners), less than the memory that is sold.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Other(NamedTuple):
    """One card. `spelling` is as in plan.cards.

    `shared`: its memory is the host's; driver_mib is then what the kernel calls total.
    """

    device: str
    spelling: str
    capability: tuple[int, int]
    driver_mib: int
    bandwidth: int
    tflops: float
    shared: bool = False


def _rtx(model: str, gb: int) -> str:
    return rf"(rtx)?{model}({gb}(gb?)?)?"


_SUPER = "(super|s)"
# fmt: off
# name: device, spelling, capability, driver_mib, bandwidth, tflops
OTHERS: dict[str, Other] = {
    "rtx_3060_ti": Other("NVIDIA GeForce RTX 3060 Ti", _rtx("3060ti", 8), (8, 6), 8192, 448, 32.4),
    "rtx_3070_ti": Other("NVIDIA GeForce RTX 3070 Ti", _rtx("3070ti", 8), (8, 6), 8192, 608, 43.5),
    "rtx_3080": Other("NVIDIA GeForce RTX 3080", _rtx("3080", 10), (8, 6), 10240, 760, 59.5),
    "rtx_3080_12": Other("NVIDIA GeForce RTX 3080 12GB", r"(rtx)?308012(gb?)?", (8, 6), 12288, 912, 61.3),
    "rtx_3080_ti": Other("NVIDIA GeForce RTX 3080 Ti", _rtx("3080ti", 12), (8, 6), 12288, 912, 68.2),
    "rtx_3090_ti": Other("NVIDIA GeForce RTX 3090 Ti", _rtx("3090ti", 24), (8, 6), 24564, 1008, 80.0),
    "rtx_4060": Other("NVIDIA GeForce RTX 4060", _rtx("4060", 8), (8, 9), 8188, 272, 30.2),
    "rtx_4060_ti_8": Other("NVIDIA GeForce RTX 4060 Ti 8GB", r"(rtx)?4060ti8(gb?)?", (8, 9), 8188, 288, 44.1),
    "rtx_4060_ti_16": Other("NVIDIA GeForce RTX 4060 Ti 16GB", r"(rtx)?4060ti16(gb?)?", (8, 9), 16380, 288, 44.1),
    "rtx_4070_super": Other("NVIDIA GeForce RTX 4070 SUPER", _rtx("4070" + _SUPER, 12), (8, 9), 12282, 504, 71.0),
    "rtx_4070_ti": Other("NVIDIA GeForce RTX 4070 Ti", _rtx("4070ti", 12), (8, 9), 12282, 504, 80.2),
    "rtx_4070_ti_super": Other("NVIDIA GeForce RTX 4070 Ti SUPER", _rtx(f"4070(ti{_SUPER}|sti)", 16), (8, 9), 16376, 672, 88.2),
    "rtx_4080_super": Other("NVIDIA GeForce RTX 4080 SUPER", _rtx("4080" + _SUPER, 16), (8, 9), 16376, 736, 104.4),
    "rtx_4090_d": Other("NVIDIA GeForce RTX 4090 D", _rtx("4090d", 24), (8, 9), 24564, 1008, 147.1),
    "rtx_5060": Other("NVIDIA GeForce RTX 5060", _rtx("5060", 8), (12, 0), 8151, 448, 38.4),
    "rtx_5060_ti_8": Other("NVIDIA GeForce RTX 5060 Ti 8GB", r"(rtx)?5060ti8(gb?)?", (12, 0), 8151, 448, 47.4),
    "rtx_5060_ti_16": Other("NVIDIA GeForce RTX 5060 Ti 16GB", r"(rtx)?5060ti16(gb?)?", (12, 0), 16311, 448, 47.4),
    "rtx_5070": Other("NVIDIA GeForce RTX 5070", _rtx("5070", 12), (12, 0), 12227, 672, 61.7),
    "rtx_5070_ti": Other("NVIDIA GeForce RTX 5070 Ti", _rtx("5070ti", 16), (12, 0), 16303, 896, 87.9),
    "rtx_5080": Other("NVIDIA GeForce RTX 5080", _rtx("5080", 16), (12, 0), 16303, 960, 112.6),
    "rtx_a4500": Other("NVIDIA RTX A4500", _rtx("a4500", 20), (8, 6), 20470, 640, 94.6),
    "rtx_a5500": Other("NVIDIA RTX A5500", _rtx("a5500", 24), (8, 6), 24564, 768, 136.4),
    "rtx_4500_ada": Other("NVIDIA RTX 4500 Ada Generation", _rtx("4500ada(generation)?", 24), (8, 9), 24570, 432, 158.5),
    "rtx_5000_ada": Other("NVIDIA RTX 5000 Ada Generation", _rtx("5000ada(generation)?", 32), (8, 9), 32760, 576, 261.1),
    "rtx_pro_5000": Other("NVIDIA RTX PRO 5000 Blackwell", r"(rtx)?(pro5000|5000pro)(blackwell)?(48(gb?)?)?", (12, 0), 48935, 1344, 258.0),
    "a2": Other("NVIDIA A2", r"a2(16(gb?)?)?", (8, 6), 15356, 200, 18.0),
    "a10": Other("NVIDIA A10", r"a10(pcie)?(24(gb?)?)?", (8, 6), 23028, 600, 125.0),
    "a10g": Other("NVIDIA A10G", r"a10g(24(gb?)?)?", (8, 6), 23028, 600, 70.0),
    "a16": Other("NVIDIA A16", r"a16(16(gb?)?)?", (8, 6), 15356, 200, 17.9),
    "a30": Other("NVIDIA A30", r"a30(pcie)?(24(gb?)?)?", (8, 0), 24576, 933, 165.0),
    "a800_40": Other("NVIDIA A800 40GB Active", r"a800(pcie|sxm4?)?40(gb?)?(active|pcie|sxm4?)?", (8, 0), 40960, 1555, 312.0),
    "a800_80": Other("NVIDIA A800-SXM4-80GB", r"a800(pcie|sxm4?)?80(gb?)?(pcie|sxm4?)?", (8, 0), 81920, 2039, 312.0),
    "h100_pcie": Other("NVIDIA H100 PCIe", r"h100pcie(80(gb?)?)?|h10080(gb?)?pcie", (9, 0), 81559, 2039, 756.0),
    "h100_nvl": Other("NVIDIA H100 NVL", r"h100nvl(94(gb?)?)?", (9, 0), 95830, 3938, 835.0),
    "h800": Other("NVIDIA H800", r"h800(sxm5?)?(80(gb?)?)?(hbm3)?", (9, 0), 81559, 3350, 989.0),
    "h800_pcie": Other("NVIDIA H800 PCIe", r"h800pcie(80(gb?)?)?", (9, 0), 81559, 2039, 756.0),
    "h20": Other("NVIDIA H20", r"h20(sxm5?)?(96(gb?)?)?(hbm3)?", (9, 0), 97871, 4000, 148.0),
    "gh200": Other("NVIDIA GH200 480GB", r"gh200((480|120|96)(gb?)?)?(hbm3)?", (9, 0), 97871, 4000, 989.0),
    "h200_nvl": Other("NVIDIA H200 NVL", r"h200(pcie)?nvl(141(gb?)?)?(hbm3e)?", (9, 0), 143771, 4800, 835.0),
    "gb200": Other("NVIDIA GB200", r"gb200(nvl\d+)?((186|192)(gb?)?)?(hbm3e)?", (10, 0), 189471, 8000, 2500.0),
    "b300": Other("NVIDIA B300 SXM6 AC", r"b300(sxm6?)?(ac)?((270|275|288)(gb?)?)?(hbm3e)?", (10, 3), 275040, 8000, 2250.0),
    "gb300": Other("NVIDIA GB300", r"gb300(nvl\d*)?((279|288)(gb?)?)?(hbm3e)?", (10, 3), 284208, 8000, 2500.0),
    "l20": Other("NVIDIA L20", r"l20(48(gb?)?)?", (8, 9), 46068, 864, 119.5),
    "l40": Other("NVIDIA L40", r"l40(48(gb?)?)?", (8, 9), 46068, 864, 181.0),
    "gb10": Other("NVIDIA GB10", r"(gb10|dgxspark|dgxsparkgb10)(graceblackwell)?(superchip)?(128(gb?)?)?", (12, 1), 122_000, 273, 125.0, shared=True),
    "jetson_thor": Other("NVIDIA Thor", r"(jetson)?(agx)?(thor|t5000|thort5000)(128(gb?)?)?", (11, 0), 122_000, 273, 258.0, shared=True),
    "jetson_orin_64": Other("NVIDIA Jetson AGX Orin 64GB", r"(jetson)?(agx)?orin64(gb?)?", (8, 7), 62_000, 204, 42.5, shared=True),
}
# fmt: on

# Beginning of a name without case, spaces and makers' words → its architecture, for a card that is in no
# table.
_SERIES: tuple[tuple[str, tuple[int, int]], ...] = (
    (r"(rtx)?pro\d{3,4}|(rtx)?50[5-9]0", (12, 0)),
    (r"(rtx)?\d{3,4}e?(sff)?ada|(rtx)?40[5-9]0|l(2|4|20|40)(?!\d)", (8, 9)),
    # A memory size may follow a name: "a10064gb" is an A100 of 64 GB. "a1000" is another card.
    (r"a(30|100|800)(?!0)|pg50[69]", (8, 0)),
    # Of the 20 series the RTX 2050 alone is Ampere.
    (r"(rtx)?30[5-9]0|rtx2050|(rtx)?a\d{4}|rtxa400|a(2|10|16|40)(?!\d|highgpu|ultragpu|megagpu)", (8, 6)),
    (r"g?h(20|100|200|800)", (9, 0)),
    (r"g?b300", (10, 3)),
    (r"g?b[12]00", (10, 0)),
    (r"(jetson)?(agx)?thor|jetsont[45]000", (11, 0)),
    (r"(jetson)?(agx|nx|nano)?orin", (8, 7)),
)
# Series whose memory is the host's.
SHARING = frozenset({(8, 7), (11, 0)})
# Before Ampere. Source: as above; Tesla, Quadro, GeForce and TITAN rows of 7.5 and older.
_OLD: tuple[tuple[str, str], ...] = (
    (
        r"t4g?(?!\d)|(quadro)?t\d{3,4}|(rtx)?20[6-8]0|(gtx?)?16[2-8]0|titanrtx|"
        r"q?(quadro)?rtx[3-8]000(?!(sff)?ada|d|pro|blackwell)",
        "7.5",
    ),
    (r"v100|titanv|quadrogv100|gv100", "7.0"),
    (r"p100|quadrogp100", "6.0"),
    (r"(jetson)?(agx)?xavier", "7.2"),
    # p4d.24xlarge is a machine of AWS, with A100.
    (r"p(4|6|40)(?!d)|(gtx?)?10[1-8]0|titanxp|quadrop\d+", "6.1"),
    (r"m(4|6|10|40|60)(?!max|pro|ultra)|gtx?9[5-8]0|(gtx)?titanx|quadrom\d+", "5.2"),
    (r"k(10|20|40|80)|gtx?[67]\d0", "3.7"),
)
# Beginnings of the names of other makers' cards.
_MAKERS: tuple[tuple[str, str], ...] = (
    (
        r"amd|instinct|radeon|ryzen|strix|gfx\d|r9700|mi\d{2,3}|rx\d{3,4}|[679]\d{3}(xtx?|gre)|vega|firepro|"
        r"w[5-9]\d00",
        "AMD",
    ),
    (r"apple|m\d(max|pro|ultra)|m\d$", "Apple"),
    (
        r"intel|habana|gaudi|arc|a(3[18]|58|7[57])0(?!0)|b(5[78]|5|6)0$|hl\d{3}|iris|xe|"
        r"(datacenter)?(gpu)?(max1[15]\d0|flex1[47]0)",
        "Intel",
    ),
)


def maker(plain: str) -> str | None:
    """The maker of a card that is not NVIDIA's; None for any other name."""
    return next((maker for pattern, maker in _MAKERS if re.match(pattern, plain)), None)


def series(plain: str) -> tuple[int, int] | None:
    """The compute capability of the series that a card's name belongs to; None for an unknown series."""
    return next((capability for pattern, capability in _SERIES if re.match(pattern, plain)), None)


def too_old(plain: str) -> str | None:
    """The compute capability, as text, of a card older than Ampere; None for any other card."""
    # Three cards are called RTX 6000. Without "Quadro" the name does not tell which one is meant.
    if re.fullmatch(r"(rtx)?6000((48|96)(gb?)?)?", plain):
        return None
    return next((capability for pattern, capability in _OLD if re.match(pattern, plain)), None)
