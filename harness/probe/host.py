"""The host's resources for this process: memory, swap, cores, disks, /dev/shm; WSL2 or container.

Every file is read below `root`, so that a test can describe another machine. Linux only, as the container is.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from harness.artifacts import Disk, Host
from harness.probe.cgroup import Limits, read_limits

# Prefixes of the CPU extensions that decide a compiled program's instructions, and so its rounding.
VECTOR = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve")
GROUP_MARKS = (
    ("docker", "docker"),
    ("kubepods", "kubernetes"),
    ("containerd", "containerd"),
    ("libpod", "podman"),
    ("/lxc/", "lxc"),
)


def read(paths: list[Path], *, root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Host:
    """The host as this process sees it. A run will write to `paths`."""
    unknown: dict[str, str] = {}
    memory = _meminfo(root, unknown)
    limits = read_limits(root)
    total, available = _ram(memory, limits, unknown)
    return Host(
        hostname=platform.node() or None,
        kernel=platform.release() or None,
        processor=_processor(root, unknown),
        ram_total_bytes=total,
        ram_available_bytes=available,
        swap_bytes=_swap(memory, limits, unknown),
        shm_bytes=_shm(root, unknown),
        cores=_cores(limits),
        wsl=_wsl(root, unknown),
        container=_container(root, environ),
        disks=[_disk(path) for path in paths],
        unknown=unknown,
    )


def _meminfo(root: Path, unknown: dict[str, str]) -> dict[str, int]:
    """Bytes of each line of /proc/meminfo."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError as error:
        unknown |= dict.fromkeys(
            ("ram_total_bytes", "ram_available_bytes", "swap_bytes"), f"/proc/meminfo: {error.strerror}"
        )
        return {}
    pairs = (line.partition(":") for line in lines)
    return {
        key: int(value.split()[0]) * 1024
        for key, _, value in pairs
        if value.split()[:1] and value.split()[0].isdigit()
    }


def _ram(memory: dict[str, int], limits: Limits, unknown: dict[str, str]) -> tuple[int | None, int | None]:
    """Total and available bytes: the host's, or the cgroup's if it allows less."""
    totals = [value for value in (memory.get("MemTotal"), limits.memory_bytes) if value is not None]
    available = [
        value for value in (memory.get("MemAvailable"), limits.memory_left_bytes) if value is not None
    ]
    for field, values in (("ram_total_bytes", totals), ("ram_available_bytes", available)):
        if not values:
            unknown.setdefault(field, "/proc/meminfo does not tell it")
    # What a group has taken is not always told. Then all that it may take is the most that is left.
    return min(totals, default=None), min([*available, *totals]) if available else None


def _swap(memory: dict[str, int], limits: Limits, unknown: dict[str, str]) -> int | None:
    total = memory.get("SwapTotal")
    if total is None:
        unknown.setdefault("swap_bytes", "/proc/meminfo does not tell it")
        return None
    return total if limits.swap_bytes is None else min(total, limits.swap_bytes)


def _shm(root: Path, unknown: dict[str, str]) -> int | None:
    try:
        facts = os.statvfs(root / "dev/shm")
    except OSError as error:
        unknown["shm_bytes"] = f"/dev/shm: {error.strerror}"
        return None
    return facts.f_blocks * facts.f_frsize


def _cores(limits: Limits) -> float:
    """Number of cores that this process may use, at most the cgroup's quota (which may be a fraction)."""
    usable = float(len(os.sched_getaffinity(0)))
    return usable if limits.cores is None else min(usable, limits.cores)


def _processor(root: Path, unknown: dict[str, str]) -> str | None:
    """The first processor's model, and its extensions that change a compiled program."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError as error:
        unknown["processor"] = f"/proc/cpuinfo: {error.strerror}"
        return None
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    model = facts.get("model name") or facts.get("CPU implementer")
    if not model:
        unknown["processor"] = "/proc/cpuinfo does not tell it"
        return None
    vector = sorted(
        flag
        for flag in (facts.get("flags") or facts.get("Features") or "").split()
        if flag.startswith(VECTOR)
    )
    return f"{model} ({' '.join(vector)})"


def _wsl(root: Path, unknown: dict[str, str]) -> bool | None:
    if (root / "dev/dxg").exists():
        return True
    try:
        return "microsoft" in (root / "proc/version").read_text().lower()
    except OSError as error:
        unknown["wsl"] = f"/proc/version: {error.strerror}"
        return None


def _container(root: Path, environ: Mapping[str, str]) -> str:
    """The kind of container in which this process runs; "none" outside a container."""
    marks = {
        "kubernetes": "KUBERNETES_SERVICE_HOST" in environ,
        "apptainer": "APPTAINER_CONTAINER" in environ or "SINGULARITY_CONTAINER" in environ,
        "podman": (root / "run/.containerenv").exists(),
        "docker": (root / ".dockerenv").exists(),
    }
    for kind, there in marks.items():
        if there:
            return kind
    if environ.get("container"):
        return environ["container"]
    return next((kind for mark, kind in GROUP_MARKS if mark in _init_cgroup(root)), "none")


def _init_cgroup(root: Path) -> str:
    try:
        return (root / "proc/1/cgroup").read_text()
    except OSError:
        return ""


def _disk(path: Path) -> Disk:
    """The file system of `path`. If `path` does not exist, its nearest existing ancestor counts.

    `free_bytes` is the space that a user without root's reserve may fill.
    """
    there = next(
        (existing for existing in (path.absolute(), *path.absolute().parents) if existing.exists()), Path("/")
    )
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    try:
        facts = os.statvfs(there)
        reason = None if facts.f_blocks else "the file system does not count its blocks"
    except OSError as error:
        reason = f"{there}: {error.strerror}"
    if reason:
        return Disk(path=str(path), writable=writable, unknown={"total_bytes": reason, "free_bytes": reason})
    return Disk(
        path=str(path),
        total_bytes=facts.f_blocks * facts.f_frsize,
        free_bytes=facts.f_bavail * facts.f_frsize,
        writable=writable,
    )
