"""Tests the host probe on simulated machines.

Files of /proc, /sys/fs/cgroup and the marks of containers lie below a temporary root.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.probe import host
from harness.probe.cgroup import Limits, read_limits

GIB = 2**30
MEMINFO = (
    f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {48 * GIB // 1024} kB\nSwapTotal:"
    f" {8 * GIB // 1024} kB\nHugePages_Total: 0\n"
)
UNLIMITED_V1 = str(2**63 - 4096)


CPUINFO = (
    "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu sse4_2 avx2 fma avx512f"
    " smep\n\nprocessor\t: 1\nmodel name\t: Other"
)


def lay_out(root: Path, files: dict[str, str]) -> Path:
    base = {
        "proc/meminfo": MEMINFO,
        "proc/cpuinfo": CPUINFO,
        "proc/version": "Linux version 6.8.0-generic",
        "dev/shm/.keep": "",
    }
    for name, text in (base | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "sys/fs/cgroup"
CGROUPS: dict[str, tuple[dict[str, str], Limits]] = {
    "none": ({}, Limits()),
    "v2 without limits": (
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": "max", f"{V2}/cpu.max": "max 100000"},
        Limits(),
    ),
    "v2 in a container": (
        {
            "proc/self/cgroup": "0::/",
            f"{V2}/memory.max": str(16 * GIB),
            f"{V2}/memory.current": str(10 * GIB),
            f"{V2}/memory.stat": f"anon 5\ninactive_file {3 * GIB}\nactive_file {GIB}",
            f"{V2}/memory.swap.max": "0",
            f"{V2}/cpu.max": "250000 100000",
        },
        Limits(16 * GIB, 10 * GIB, 0, 2.5),
    ),
    "v2, the tightest ancestor counts": (
        {
            "proc/self/cgroup": "0::/lab.slice/user.scope",
            f"{V2}/lab.slice/memory.max": str(8 * GIB),
            f"{V2}/lab.slice/memory.current": str(7 * GIB),
            f"{V2}/lab.slice/user.scope/memory.max": str(32 * GIB),
            f"{V2}/lab.slice/user.scope/memory.current": str(GIB),
            f"{V2}/lab.slice/user.scope/cpu.max": "400000 100000",
        },
        Limits(8 * GIB, GIB, None, 4.0),
    ),
    "v2, using more than the limit": (
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": str(GIB), f"{V2}/memory.current": str(2 * GIB)},
        Limits(GIB, 0, None, None),
    ),
    "v2, throttled before it is killed": (
        {
            "proc/self/cgroup": "0::/",
            f"{V2}/memory.max": str(16 * GIB),
            f"{V2}/memory.high": str(12 * GIB),
            f"{V2}/memory.current": str(2 * GIB),
        },
        Limits(12 * GIB, 10 * GIB),
    ),
    "v2, throttled and never killed": (
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": "max", f"{V2}/memory.high": str(4 * GIB)},
        Limits(4 * GIB),
    ),
    "v1, limited by a group that is not mounted": (
        {
            "proc/self/cgroup": "5:memory:/kubepods/pod1/c1",
            f"{V2}/memory/memory.limit_in_bytes": UNLIMITED_V1,
            f"{V2}/memory/memory.usage_in_bytes": str(GIB),
            f"{V2}/memory/memory.stat": f"hierarchical_memory_limit {8 * GIB}\ntotal_inactive_file 0",
        },
        Limits(8 * GIB, 7 * GIB),
    ),
    "v1 without limits": (
        {
            "proc/self/cgroup": "5:memory:/\n3:cpu,cpuacct:/",
            f"{V2}/memory/memory.limit_in_bytes": UNLIMITED_V1,
            f"{V2}/memory/memory.usage_in_bytes": "5",
            f"{V2}/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            f"{V2}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        Limits(),
    ),
    "v1 in a container that shows the host's path": (
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc",
            f"{V2}/memory/memory.limit_in_bytes": str(12 * GIB),
            f"{V2}/memory/memory.usage_in_bytes": str(6 * GIB),
            f"{V2}/memory/memory.stat": f"total_inactive_file {GIB}\ntotal_active_file {GIB}",
            f"{V2}/memory/memory.memsw.limit_in_bytes": str(14 * GIB),
            f"{V2}/cpu,cpuacct/cpu.cfs_quota_us": "150000",
            f"{V2}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        Limits(12 * GIB, 8 * GIB, 2 * GIB, 1.5),
    ),
    "hybrid: memory by v1, an empty v2 beside it": (
        {
            "proc/self/cgroup": "4:memory:/job\n0::/job",
            f"{V2}/memory/job/memory.limit_in_bytes": str(3 * GIB),
            f"{V2}/memory/job/memory.usage_in_bytes": str(GIB),
            f"{V2}/unified/job/cgroup.procs": "1",
        },
        Limits(3 * GIB, 2 * GIB, None, None),
    ),
    "damaged files": (
        {"proc/self/cgroup": "junk\n0::/", f"{V2}/memory.max": "many", f"{V2}/cpu.max": "100000 0"},
        Limits(),
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_cgroup_limits(tmp_path: Path, name: str) -> None:
    files, expected = CGROUPS[name]
    assert read_limits(lay_out(tmp_path, files)) == expected


def test_limits_of_the_cgroup_replace_those_of_the_host(tmp_path: Path) -> None:
    files, _ = CGROUPS["v2 in a container"]
    found = host.read([], root=lay_out(tmp_path, files), environ={})
    assert (found.ram_total_bytes, found.ram_available_bytes, found.swap_bytes) == (16 * GIB, 10 * GIB, 0)
    assert found.cores == min(2.5, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("name", CGROUPS)
def test_no_more_is_available_than_there_is(tmp_path: Path, name: str) -> None:
    found = host.read([], root=lay_out(tmp_path, CGROUPS[name][0]), environ={})
    assert found.ram_available_bytes is not None
    assert found.ram_total_bytes is not None
    assert found.ram_available_bytes <= found.ram_total_bytes


def test_without_limits_the_host_counts(tmp_path: Path) -> None:
    found = host.read([], root=lay_out(tmp_path, {}), environ={})
    assert (found.ram_total_bytes, found.ram_available_bytes, found.swap_bytes) == (
        64 * GIB,
        48 * GIB,
        8 * GIB,
    )
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.unknown == {}


@pytest.mark.parametrize(
    ("text", "processor"),
    [
        (CPUINFO, "Some CPU @ 2.00GHz (avx2 avx512f fma sse4_2)"),
        ("CPU implementer\t: 0x41\nFeatures\t: fp asimd sve crc32", "0x41 (asimd sve)"),
        ("processor\t: 0", None),
    ],
)
def test_the_processor_and_what_changes_its_roundings(
    tmp_path: Path, text: str, processor: str | None
) -> None:
    found = host.read([], root=lay_out(tmp_path, {"proc/cpuinfo": text}), environ={})
    assert found.processor == processor
    assert ("processor" in found.unknown) == (processor is None)


def test_nothing_readable_is_unknown_and_never_zero(tmp_path: Path) -> None:
    found = host.read([], root=tmp_path, environ={})
    for field in ("ram_total_bytes", "ram_available_bytes", "swap_bytes", "shm_bytes", "wsl", "processor"):
        assert getattr(found, field) is None
        assert found.unknown[field]


@pytest.mark.parametrize(
    ("files", "environ", "kind"),
    [
        ({}, {}, "none"),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {"container": "podman"}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/image.sif"}, "apptainer"),
        ({}, {"container": "systemd-nspawn"}, "systemd-nspawn"),
        ({"proc/1/cgroup": "12:memory:/docker/0123"}, {}, "docker"),
        ({"proc/1/cgroup": "0::/init.scope"}, {}, "none"),
    ],
)
def test_container_kind(tmp_path: Path, files: dict[str, str], environ: dict[str, str], kind: str) -> None:
    assert host.read([], root=lay_out(tmp_path, files), environ=environ).container == kind


@pytest.mark.parametrize(
    ("files", "wsl"),
    [
        ({}, False),
        ({"proc/version": "Linux version 5.15.153.1-microsoft-standard-WSL2"}, True),
        ({"dev/dxg": ""}, True),
    ],
)
def test_wsl(tmp_path: Path, files: dict[str, str], wsl: bool) -> None:
    assert host.read([], root=lay_out(tmp_path, files), environ={}).wsl is wsl


def test_disk_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    here, later = host.read([tmp_path, tmp_path / "runs" / "later"], environ={}).disks
    assert (
        later.total_bytes == here.total_bytes == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    )
    assert later.writable is True


def test_file_in_place_of_a_directory_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert host.read([tmp_path / "file" / "run"], environ={}).disks[0].writable is False


def test_pseudo_file_system_has_no_size() -> None:
    disk = host.read([Path("/proc")], environ={}).disks[0]
    assert disk.total_bytes is None
    assert disk.unknown["total_bytes"]
