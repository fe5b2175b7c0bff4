"""The cards that a plan can be made for without having one: their figures, and the text for XLA's compiler.

Two totals of memory are known for most cards. `driver_mib` is what nvidia-smi prints. `cuda_bytes` is what a
CUDA program is told (XLA's `device_memory_size`), 0.3 to 0.8 GiB less because the driver keeps some. Drivers
differ by tens of MiB, one by 140; the smallest figure found is taken. For the A4000 none was found: there the
driver's total stands in, which is too large by what the driver keeps. Data-center cards have ECC on, the
others off, as they are sold. Boards of one chip and memory are one card here: A100 SXM and PCIe, the three
RTX PRO 6000. A PCIe, server or Max-Q board may have a lower clock and bandwidth, but no other size.

Source, by figure:
- XLA's target descriptions (openxla/xla, xla/backends/gpu/target_config/specs) agree in every figure with the
  rows RTX A6000, A100 40 and 80 (SXM), H100 SXM and B200. With H200 they agree but for memory (there the
  nominal 141 GiB; here what PyTorch printed on one) and L2 (there 50 MiB; PyTorch printed 60). With RTX PRO
  6000 they agree but for memory (there the nominal 96 GiB) and shared memory (there 128 KiB, which counts the
  L1 cache; programs on compute capability 12.0 print 100).
- deviceQuery (NVIDIA's cuda-samples), printed on the card and published by its owner: processors, L2 and
  clock of RTX 3060, 3070, 4090, 5090, A4000, A40, L4, L40S and RTX 3090, and the bandwidth, which is memory
  clock x 2 x bus width. Clocks are the sheet's, because overclocked boards print more.
- PyTorch printed processors and L2 of the A5000; a benchmark log printed its bandwidth. Its clock (1695 MHz)
  is not confirmed by anything read.
- RTX 4070, RTX 4080 and RTX 6000 Ada, all but memory: pages that quote NVIDIA's document. The documents named
  in the rows are the origin of the figures, but were not opened themselves. The 4080's bandwidth is 22.4
  Gbit/s x 256 bit.
- `driver_mib`: nvidia-smi tables published by owners, for every card.
- `cuda_bytes`: deviceQuery, PyTorch, llama.cpp or TensorRT as published by owners (in whole MiB where printed
  so), or XLA's description.
- Limits of a compute capability: CUDA C++ Programming Guide, "Technical Specifications per Compute
  Capability" (shared memory of all six as quoted from it). 8.0, 8.6, 9.0 and 10.0 agree with XLA's
  descriptions in every limit.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import NamedTuple

from harness.errors import HarnessError
from harness.plan.more_cards import OTHERS, SHARING, maker, series, too_old
from harness.units import GIB, MIB


class _Limits(NamedTuple):
    """Limits of one multiprocessor of a compute capability.

    They are float32 lanes, resident threads, and bytes of shared memory (all; one block's most).
    """

    lanes: int
    threads: int
    shared: int
    shared_per_block: int
    accelerated: bool = False


# Hopper and data-center Blackwell have instructions that only their own architecture has ("9.0a"). XLA uses
# them if it may.
_LIMITS = {
    (8, 0): _Limits(64, 2048, 167_936, 166_912),
    (8, 6): _Limits(128, 1536, 102_400, 101_376),
    (8, 9): _Limits(128, 1536, 102_400, 101_376),
    (9, 0): _Limits(128, 2048, 233_472, 232_448, accelerated=True),
    (10, 0): _Limits(128, 2048, 233_472, 232_448, accelerated=True),
    (12, 0): _Limits(128, 1536, 102_400, 101_376),
}


class Card(NamedTuple):
    """A card's figures.

    `spelling` is a pattern of its names without case, spaces and makers' words. `sheet` is NVIDIA's document
    about it.

    Units: bandwidth in MB/s (10^6 bytes), l2 in KiB, clock (boost) in MHz, driver_mib in MiB, cuda_bytes in
    bytes, or None if none was found. `tflops` (10^12 a second) is set if the rate is published and processors
    and clock are a stand-in's. `shared`: its memory is the host's.
    """

    device: str
    spelling: str
    capability: tuple[int, int]
    processors: int
    bandwidth: int
    l2: int
    clock: int
    driver_mib: int
    cuda_bytes: int | None
    sheet: str
    tflops: float | None = None
    shared: bool = False

    @property
    def memory_bytes(self) -> int:
        """Bytes that a program finds on the idle card; the driver's total if only that is known."""
        return self.driver_mib * MIB if self.cuda_bytes is None else self.cuda_bytes

    def target(self) -> str:
        """The GpuTargetConfigProto, in text form, that XLA compiles for."""
        limits = _LIMITS[self.capability]
        major, minor = self.capability
        return _TEMPLATE.format(
            card=self,
            limits=limits,
            capability=f"major: {major} minor: {minor}"
            + (" feature_extension: ACCELERATED_FEATURES" if limits.accelerated else ""),
            bandwidth=self.bandwidth * 10**6,
            l2=self.l2 * 1024,
            clock=f"{self.clock / 1000:g}",
        )


_GA102 = "NVIDIA Ampere GA102 GPU Architecture (white paper)"
_ADA = "NVIDIA Ada GPU Architecture (white paper)"
_RTX_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture (white paper)"
_GA100 = "NVIDIA A100 Tensor Core GPU Architecture (white paper)"
_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture (white paper)"
_H200 = "NVIDIA H200 Tensor Core GPU (data sheet)"
_BLACKWELL = "NVIDIA Blackwell Architecture (technical brief)"
# How like two names are, from 0 to 1, that one is proposed for the other: of any series, and of the same.
_NEAR, _NEAR_KIN = 0.6, 0.4
# A card has less memory than it is sold with, by this share at most: what ECC, the driver and the kernel keep.
_SOLD = 0.08
_PRO_6000 = r"(rtx)?(pro6000|6000pro|6000(?=blackwell))(blackwell)?(maxq)?(workstation|server|ws|s)?(edition)?(96gb?)?"

# fmt: off
# name: device, spelling, capability, processors, bandwidth, l2, clock, driver_mib, cuda_bytes, sheet
CARDS: dict[str, Card] = {
    "rtx_3060": Card("NVIDIA GeForce RTX 3060", r"(rtx)?3060(12gb?)?", (8, 6), 28, 360_048, 2304, 1777, 12288, 11901 * MIB, "GeForce RTX 3060 (page)"),
    "rtx_3070": Card("NVIDIA GeForce RTX 3070", r"(rtx)?3070(8gb?)?", (8, 6), 46, 448_064, 4096, 1725, 8192, 8_197_111_808, "GeForce RTX 3070 (page)"),
    "rtx_3090": Card("NVIDIA GeForce RTX 3090", r"(rtx)?3090(24gb?)?", (8, 6), 82, 936_096, 6144, 1695, 24576, 25_286_672_384, _GA102),
    "rtx_4070": Card("NVIDIA GeForce RTX 4070", r"(rtx)?4070(12gb?)?", (8, 9), 46, 504_000, 36864, 2475, 12282, 11866 * MIB, "GeForce RTX 4070 (page)"),
    "rtx_4080": Card("NVIDIA GeForce RTX 4080", r"(rtx)?4080(16gb?)?", (8, 9), 76, 716_800, 65536, 2505, 16376, 15945 * MIB, _ADA),
    "rtx_4090": Card("NVIDIA GeForce RTX 4090", r"(rtx)?4090(24gb?)?", (8, 9), 128, 1_008_096, 73728, 2520, 24564, 24207 * MIB, _ADA),
    "rtx_5090": Card("NVIDIA GeForce RTX 5090", r"(rtx)?5090(32gb?)?", (12, 0), 170, 1_792_128, 98304, 2407, 32607, 33_660_534_784, _RTX_BLACKWELL),
    "rtx_a4000": Card("NVIDIA RTX A4000", r"(rtx)?a4000(16gb?)?", (8, 6), 48, 448_064, 4096, 1560, 16376, None, "NVIDIA RTX A4000 (data sheet)"),
    "rtx_a5000": Card("NVIDIA RTX A5000", r"(rtx)?a5000(24gb?)?", (8, 6), 64, 768_000, 6144, 1695, 24564, 24114 * MIB, "NVIDIA RTX A5000 (data sheet)"),
    "rtx_a6000": Card("NVIDIA RTX A6000", r"(rtx)?a6000(48gb?)?", (8, 6), 84, 768_096, 6144, 1800, 49140, 51_041_271_808, _GA102),
    "rtx_6000_ada": Card("NVIDIA RTX 6000 Ada Generation", r"(rtx)?6000ada(generation)?(48gb?)?", (8, 9), 142, 960_000, 98304, 2505, 49140, 48622 * MIB, _ADA),
    "rtx_pro_6000": Card("NVIDIA RTX PRO 6000 Blackwell", _PRO_6000, (12, 0), 188, 1_792_000, 131072, 2600, 97887, 97250 * MIB, _RTX_BLACKWELL),
    "l4": Card("NVIDIA L4", r"l4(24gb?)?", (8, 9), 58, 300_048, 49152, 2040, 23034, 23_612_293_120, "NVIDIA L4 Tensor Core GPU (data sheet)"),
    "l40s": Card("NVIDIA L40S", r"l40s(48gb?)?", (8, 9), 142, 864_096, 98304, 2520, 46068, 47_576_711_168, "NVIDIA L40S GPU (data sheet)"),
    "a40": Card("NVIDIA A40", r"a40(48gb?)?", (8, 6), 84, 696_096, 6144, 1740, 46068, 47_608_692_736, _GA102),
    "a100_40": Card("NVIDIA A100-SXM4-40GB", r"a100(sxm4?|pcie)?40(gb?)?(sxm4?|pcie)?", (8, 0), 108, 1_555_200, 40960, 1410, 40960, 42_331_013_120, _GA100),
    "a100_80": Card("NVIDIA A100-SXM4-80GB", r"a100(sxm4?|pcie)?80(gb?)?(sxm4?|pcie)?", (8, 0), 108, 2_039_040, 40960, 1410, 81920, 85_100_068_864, _GA100),
    "h100": Card("NVIDIA H100 80GB HBM3", r"h100(sxm5?)?(80(gb?)?)?(hbm3)?(sxm5?)?", (9, 0), 132, 3_352_320, 51200, 1980, 81559, 84_942_979_072, _HOPPER),
    "h200": Card("NVIDIA H200", r"h200(sxm5?)?(141(gb?)?)?(hbm3e)?(sxm5?)?", (9, 0), 132, 4_800_000, 61440, 1980, 143771, 143156 * MIB, _H200),
    "b200": Card("NVIDIA B200", r"b200(sxm6?)?((180|192)(gb?)?)?(hbm3e)?", (10, 0), 148, 7_672_320, 129536, 1965, 183359, 191_514_411_008, _BLACKWELL),
}
# fmt: on

# The figures common to all cards, and the versions of CUDA and cuDNN that the pinned jaxlib was built with.
_TEMPLATE = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {limits.shared}
  threads_per_core_limit: {limits.threads}
  core_count: {card.processors}
  fpus_per_core: {limits.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {card.memory_bytes}
  shared_memory_per_block_optin: {limits.shared_per_block}
  cuda_compute_capability {{ {capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_address_bits: 64
  name: "{card.device}"
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{card.device}"
"""


def targets() -> list[str]:
    """Names of the cards that this package can compile for without having one."""
    return sorted(CARDS)


def names() -> list[str]:
    """Names of all cards that a plan can be made for."""
    return sorted([*CARDS, *OTHERS])


def find(name: str) -> str:
    """The key in CARDS or OTHERS of a card as people write its name.

    Case, spaces, punctuation and the maker's name do not matter. Ti, SUPER, Laptop, PCIe (if the board
    differs) and another memory size make it another card. An A100 needs its memory size.
    Raises: HarnessError "gpu-unknown" with the nearest names, "gpu-too-old", "gpu-not-nvidia".
    """
    wanted = _plain(name)
    for key, spelling in _spellings().items():
        if re.fullmatch(spelling, wanted):
            return key
    # M and one digit alone is a chip of Apple's; the cards Tesla M4 and M6 are nearly gone.
    bare = re.fullmatch(r"m\d", wanted) and not re.search("tesla|nvidia", name.lower())
    old = None if bare else too_old(wanted)
    if old is not None:
        raise _too_old(name, old)
    other, wanted = maker(wanted), _plain(_board(name))
    if other is not None:
        raise HarnessError(
            "gpu-not-nvidia",
            f"no plan for {name}: it is {other}'s, and what is compiled here runs on NVIDIA cards alone",
            got=name,
            need="an NVIDIA card of compute capability 8.0 (Ampere) or newer",
            fix="harness plan --gpu h100 shows what an NVIDIA card would do",
        )
    near = _near(wanted)
    alike = any(wanted.startswith(each) or each.startswith(wanted) for each in near)
    nearest = [f"--gpu {each}" for each in list(dict.fromkeys(near.values()))[:3]]
    said = [f"--gpu {shlex.quote(name)} --vram-gib X with its memory"] if series(wanted) else []
    raise HarnessError(
        "gpu-unknown",
        f"no target description for a GPU called {name!r}; a Ti, SUPER, Laptop or other memory size is"
        " another card"
        if alike
        else f"no target description for a GPU called {name!r}",
        got=name,
        need=f"one of {', '.join(names())}",
        fix=" or ".join([*nearest, *said]) or "--gpu with one of these names",
    )


def sized(name: str, memory_bytes: int) -> str:
    """The key of the card of this name and about this memory; of the name alone if no card has both.

    Cards of several sizes may have one name: to NVML both an RTX 4060 Ti of 8 GB and one of 16 are one.
    Raises: HarnessError as `find` does.
    """
    least = -(-memory_bytes // GIB)
    for size in range(least, int(least * (1 + _SOLD)) + 1):
        wanted = _plain(f"{name} {size}GB")
        for key, spelling in _spellings().items():
            if re.fullmatch(spelling, wanted) and _has(card(key), memory_bytes):
                return key
    return find(name)


def _has(figures: Card, memory_bytes: int) -> bool:
    return abs(figures.driver_mib * MIB - memory_bytes) <= _SOLD * memory_bytes


def _near(wanted: str) -> dict[str, str]:
    """Plain name → key of the cards whose names are near, the nearest first.

    They are of the same series, if it is known. For an unknown series the names must be nearer.
    """
    capability = series(wanted)
    keys = {key: each.capability for key, each in CARDS.items()} | {
        key: each.capability for key, each in OTHERS.items()
    }
    kin = [key for key in keys if capability in (None, keys[key])]
    plain = {_plain(key): key for key in kin} | {_plain(key).removeprefix("rtx"): key for key in kin}
    close = difflib.get_close_matches(wanted, plain, n=6, cutoff=_NEAR if capability is None else _NEAR_KIN)
    return {each: plain[each] for each in close}


def card(key: str) -> Card:
    """The figures of a card by its key. For a card of OTHERS the unknown figures are its stand-in's."""
    if key in CARDS:
        return CARDS[key]
    other = OTHERS[key]
    total = other.driver_mib * MIB
    own = total if other.shared else total - _kept_by_the_driver(total)
    figures = {
        "device": other.device,
        "spelling": other.spelling,
        "driver_mib": other.driver_mib,
        "cuda_bytes": own,
    }
    more = {"bandwidth": 1000 * other.bandwidth, "tflops": other.tflops, "shared": other.shared}
    return CARDS[like(other.capability, total)]._replace(**figures, **more)  # type: ignore[arg-type]


def of_series(name: str, memory_bytes: int) -> Card | None:
    """The card that stands for a card of a known series with this memory; None for an unknown series."""
    capability = series(_plain(_board(name)))
    return (
        None
        if capability is None
        else CARDS[like(capability, memory_bytes)]._replace(
            cuda_bytes=memory_bytes, shared=capability in SHARING
        )
    )


def _kept_by_the_driver(total: int) -> int:
    """Bytes of the total that a program does not find: as much as on any card of CARDS, or more."""
    return 400 * MIB + total // 200


def _spellings() -> dict[str, str]:
    return {key: each.spelling for key, each in CARDS.items()} | {
        key: each.spelling for key, each in OTHERS.items()
    }


def _too_old(name: str, capability: str) -> HarnessError:
    return HarnessError(
        "gpu-too-old",
        f"{name} has no bfloat16 arithmetic, in which the model is computed",
        got=f"compute capability {capability}",
        need="8.0 (Ampere) or newer",
        fix="harness plan --gpu rtx_4090 shows what a newer card would do",
    )


def like(capability: tuple[int, int], memory_bytes: int) -> str:
    """The key of the card that stands for a card that is not in the table.

    It has the same architecture, or else the newest older one, and is nearest in memory.
    Raises: HarnessError "gpu-too-old" for a card before Ampere, which has no bfloat16.
    """
    older = [each.capability for each in CARDS.values() if each.capability <= capability]
    if not older:
        raise _too_old("this GPU", "{}.{}".format(*capability))
    alike = {key: each for key, each in CARDS.items() if each.capability == max(older)}
    return min(alike, key=lambda key: abs(alike[key].memory_bytes - memory_bytes))


def nearest(memory_bytes: int) -> str:
    """The key of the card whose memory is nearest; of several, the slowest."""
    return min(CARDS, key=lambda key: (abs(CARDS[key].memory_bytes - memory_bytes), CARDS[key].bandwidth))


def _board(name: str) -> str:
    """The name without the profile of a virtual card: "NVIDIA L40-48C" is a part of an L40."""
    return re.sub(r"(-\d{1,2})?-\d{1,3}[abcq]$", "", name.strip(), flags=re.IGNORECASE)


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return re.sub(r"(\d)gib", r"\1gb", re.sub("nvidia|geforce|tesla|grid|quadro(?=rtxa)", "", letters))
