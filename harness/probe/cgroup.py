"""Limits of this process's control groups, versions 1 and 2. The tightest limit of all ancestors counts.

Source: Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Version 1 writes "no limit" as the largest multiple of the page size in 63 bits. No real limit comes near
# half of that.
UNLIMITED_V1_BYTES = 2**62


class Limits(NamedTuple):
    """The groups' limits; None if they set none."""

    memory_bytes: int | None = None
    memory_left_bytes: int | None = None
    swap_bytes: int | None = None
    cores: float | None = None


def read_limits(root: Path) -> Limits:
    """The tightest limits over all groups of this process, for the file system at `root`."""
    mount = root / "sys/fs/cgroup"
    found: list[Limits] = []
    for controllers, group in _memberships(root):
        if not controllers:
            # Version 2 alone is mounted at the top. Beside version 1 it is mounted below "unified".
            found += [
                _version_2(directory)
                for top in (mount, mount / "unified")
                for directory in _with_ancestors(top, group)
            ]
        if "memory" in controllers:
            found += [_version_1_memory(directory) for directory in _with_ancestors(mount / "memory", group)]
        if "cpu" in controllers:
            tops = (mount / "cpu", mount / "cpu,cpuacct")
            found += [
                Limits(cores=_quota_cores(directory))
                for top in tops
                for directory in _with_ancestors(top, group)
            ]
    cores = [limits.cores for limits in found if limits.cores is not None]
    return Limits(
        memory_bytes=_least(limits.memory_bytes for limits in found),
        memory_left_bytes=_least(limits.memory_left_bytes for limits in found),
        swap_bytes=_least(limits.swap_bytes for limits in found),
        cores=min(cores, default=None),
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _memberships(root: Path) -> list[tuple[list[str], str]]:
    """Controllers and group of each line of /proc/self/cgroup. Version 2's line names no controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines]
    return [([name for name in part[1].split(",") if name], part[2]) for part in parts if len(part) == 3]


def _with_ancestors(top: Path, group: str) -> list[Path]:
    """The group's directory and all directories above it that are mounted here.

    In a container the path is often the host's path. Only the container's own group is mounted, as the top.
    """
    names = [name for name in PurePosixPath(group).parts if name not in ("/", "..")]
    directories = [top.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
    return [directory for directory in directories if directory.is_dir()]


def _version_2(directory: Path) -> Limits:
    # Above memory.high the kernel slows the group down and takes its pages back; it is no room to plan with.
    limit = _least(_number(directory / name) for name in ("memory.max", "memory.high"))
    used = _number(directory / "memory.current")
    left = (
        None
        if limit is None or used is None
        else max(0, limit - used + _reclaimable(directory, "inactive_file", "active_file"))
    )
    quota, _, period = _text(directory / "cpu.max").partition(" ")
    cores = int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
    return Limits(limit, left, _number(directory / "memory.swap.max"), cores)


def _version_1_memory(directory: Path) -> Limits:
    own = _number(directory / "memory.limit_in_bytes")
    # Also the groups above, which a container does not have mounted.
    limit = _least((own, _stat(directory, "hierarchical_memory_limit")))
    used = _number(directory / "memory.usage_in_bytes")
    both = _number(directory / "memory.memsw.limit_in_bytes")
    if limit is None or limit >= UNLIMITED_V1_BYTES:
        return Limits()
    cached = _reclaimable(directory, "total_inactive_file", "total_active_file")
    left = None if used is None else max(0, limit - used + cached)
    swap = None if both is None or both >= UNLIMITED_V1_BYTES else max(0, both - (own or limit))
    return Limits(limit, left, swap)


def _reclaimable(directory: Path, *keys: str) -> int:
    """Bytes of page cache that the kernel frees before it kills a process.

    What was read twice is among them, as in MemAvailable (Documentation/filesystems/proc.rst): weights are
    read to be hashed, and again to be loaded.
    """
    return sum(_stat(directory, key) or 0 for key in keys)


def _stat(directory: Path, key: str) -> int | None:
    """A number of the group's memory.stat; None if it is not there."""
    lines = (line.split() for line in _text(directory / "memory.stat").splitlines())
    return next(
        (int(words[1]) for words in lines if len(words) == 2 and words[0] == key and words[1].isdigit()), None
    )


def _quota_cores(directory: Path) -> float | None:
    quota, period = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _number(path: Path) -> int | None:
    """The file's number; None for "max", "-1", an unreadable or a missing file."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def oom_kills(root: Path = Path("/")) -> int | None:
    """Number of processes of these groups that the kernel killed for lack of memory; None if not counted.

    Source: cgroup-v2.rst, `memory.events`; cgroup-v1/memory.rst, `memory.oom_control`.
    """
    mount, counts = root / "sys/fs/cgroup", []
    for controllers, group in _memberships(root):
        names = (
            ("memory.events",)
            if not controllers
            else ("memory.oom_control",)
            if "memory" in controllers
            else ()
        )
        tops = (mount, mount / "unified") if not controllers else (mount / "memory",)
        directories = [
            level / name for top in tops for level in _with_ancestors(top, group) for name in names
        ]
        counts += [count for directory in directories if (count := _oom_kill(directory)) is not None]
    return max(counts, default=None)


def _oom_kill(path: Path) -> int | None:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None
