"""The CUDA that JAX computes with here, and the drivers and cards that it takes. JAX is not imported."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import NamedTuple

from harness.errors import HarnessError


class Cuda(NamedTuple):
    """What one version of CUDA takes.

    `driver` is the oldest driver on Linux. `families` are the first numbers of the compute capabilities that
    its compiler makes code for, of those that compute in bfloat16. `setting` is the value of HARNESS_CUDA
    that chooses it.
    """

    driver: tuple[int, ...]
    families: frozenset[int]
    setting: str


# Drivers: NVIDIA, CUDA Toolkit release notes, "CUDA Toolkit and Minimum Required Driver Version for CUDA
# Minor Version Compatibility". Cards: `ptxas --help`, option --gpu-name, of the locks' compilers, 12.9.86 and
# 13.5.37 (tests/test_run_cuda.py asks again). What is made for a capability runs on the later ones of its
# family: CUDA C++ Programming Guide, "Binary Compatibility".
CUDA = {
    12: Cuda((525, 60, 13), frozenset({8, 9, 10, 12}), ""),
    13: Cuda((580,), frozenset({8, 9, 10, 11, 12}), "13"),
}


# The first capability with bfloat16 arithmetic, in which the model is computed. The plan refuses older GPUs.
# Source: CUDA C++ Programming Guide, "Compute Capabilities".
BFLOAT16 = (8, 0)
# CUDA 12.8 and newer contain code for Blackwell; their driver is of the 570 branch. Source: CUDA Toolkit 12.8
# release notes.
_BLACKWELL, BLACKWELL_DRIVER = (10, 0), (570,)


def cuda_plugins() -> list[str]:
    """Names of the installed plugins with which JAX compiles for NVIDIA cards, of any version of CUDA.

    Source: JAX finds plugins as entry points of the group jax_plugins, and as modules of that namespace
    (jax/_src/xla_bridge.py, `discover_pjrt_plugins`). The CUDA ones are xla_cuda12 and xla_cuda13.
    """
    named = {point.name for point in metadata.entry_points(group="jax_plugins")}
    space = find_spec("jax_plugins")
    folders = space.submodule_search_locations if space is not None else None
    named |= {module.name for module in iter_modules(folders)} if folders else set()
    return sorted(name for name in named if re.fullmatch(r"xla_cuda\d*", name))


def cuda_here() -> int:
    """The version of CUDA that JAX here computes with: the oldest of its plugins, and 12 without one."""
    versions = [int(name.removeprefix("xla_cuda") or 0) for name in cuda_plugins()]
    return min((version for version in versions if version in CUDA), default=min(CUDA))


def oldest_driver(version: int) -> str:
    """The oldest driver that this version of CUDA runs on, as NVIDIA writes it."""
    return ".".join(map(str, CUDA[version].driver))


def drives(driver: tuple[int, ...], version: int) -> bool:
    """Whether a driver is new enough for this version of CUDA. A driver told in part is taken at its word."""
    oldest = CUDA[version].driver
    return driver >= oldest[: len(driver)]


def blackwell_waits(driver: tuple[int, ...], capability: tuple[int, ...]) -> bool:
    """Whether a card is of Blackwell or newer and the driver older than any that knows it."""
    return capability >= _BLACKWELL and driver < BLACKWELL_DRIVER


def knows(version: int, capability: tuple[int, ...]) -> bool:
    """Whether this version of CUDA makes code for cards of a compute capability. None is known of ()."""
    return bool(capability) and capability[0] in CUDA[version].families


def driver_fix(version: int, driver: tuple[int, ...], capability: tuple[int, ...] = ()) -> str:
    """What to do about a driver that is too old for this version of CUDA."""
    install = f"install {oldest_driver(version)} or newer on the host"
    for other in sorted(CUDA):
        fits = not capability or (knows(other, capability) and not blackwell_waits(driver, capability))
        if other < version and drives(driver, other) and fits:
            return f"{start(other)} (CUDA {other} takes this driver), or {install}"
    return install


def card_fix(driver: tuple[int, ...], capability: tuple[int, ...]) -> str | None:
    """What to do about a card that the CUDA here makes no code for. None: no other version does."""
    for other in sorted(CUDA):
        if knows(other, capability):
            if drives(driver, other):
                return start(other)
            return f"install driver {oldest_driver(other)} or newer on the host, then {start(other)}"
    return None


def start(version: int) -> str:
    """The command that trains in the image with this version of CUDA."""
    return f"HARNESS_CUDA={CUDA[version].setting} docker compose run --rm --build train"


def check_device(device: str | None) -> None:
    """Refuses what is no kind of device.

    Raises: HarnessError "device-unknown".
    """
    if device not in (None, "cpu", "cuda"):
        raise HarnessError(
            "device-unknown",
            f"there is no device {device!r}",
            got=device,
            need="cpu or cuda",
            # A card under another of its names: what is trained on the CPU instead takes for ever.
            fix="--device cuda" if device.lower().startswith(("gpu", "cuda", "nvidia")) else "--device cpu",
        )


def computes_bfloat16(capability: str | None) -> bool | None:
    """Whether a GPU has the arithmetic in which the model is computed; None if NVML does not tell."""
    told = numbers(capability)
    return told >= BFLOAT16 if told else None


def numbers(version: str | None) -> tuple[int, ...]:
    """A version's numbers, in order; () for none."""
    return tuple(int(part) for part in (version or "").split(".") if part.isdigit())
