"""One process of a run that several machines train, as it reports itself to process 0. Linux only."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from harness.artifacts import Gpu, HostReport, Interface, Machine
from harness.run.cluster import Member
from harness.run.surroundings import software_here

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
# How the machines talk: which interface, and whether by InfiniBand.
_TALK = ("NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_NET", "GLOO_SOCKET_IFNAME")
_CPU_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def report_of(
    member: Member, name: str, machine: Machine, environ: Mapping[str, str] = os.environ, *, platform: str
) -> HostReport:
    """The report of this process. Of its machine's GPUs it names those that it would train with.

    `platform` is "cpu" for a run on CPUs.
    """
    software = software_here()
    own = own_gpus(machine, member.local_devices)
    return HostReport(
        process=member.number,
        name=name,
        machine=machine if platform == "cpu" else machine.model_copy(update={"gpus": own}),
        devices=cpu_devices(environ) if platform == "cpu" else sum(not gpu.error for gpu in own),
        clock=time.time(),
        image=software.image,
        image_id=software.image_id,
        image_digest=software.image_digest,
        lock_sha256=software.lock_sha256,
        source_sha256=software.source_sha256,
        packages_sha256=software.packages_sha256,
        python=software.python,
        proxies=proxies_before(member.coordinator.rpartition(":")[0], environ),
        interfaces=interfaces(),
        variables={key: environ[key] for key in _TALK if environ.get(key)},
    )


def own_gpus(machine: Machine, local_devices: tuple[int, ...] | None) -> list[Gpu]:
    """The GPUs that CUDA offers to this process, of which it may have been given some by number."""
    seen = [gpu for gpu in machine.gpus if gpu.visible]
    if local_devices is None:
        return seen
    return [seen[number] for number in local_devices if number < len(seen)]


def proxies_before(host: str, environ: Mapping[str, str]) -> list[str]:
    """The proxy variables that are set and apply to `host`.

    Source: gRPC core, http_proxy_mapper: no_grpc_proxy, no_proxy and NO_PROXY name hosts and domains
    without a proxy.
    """
    without = ",".join(environ.get(key, "") for key in ("no_grpc_proxy", "no_proxy", "NO_PROXY"))
    names = [name.strip().removeprefix("*").removeprefix(".") for name in without.split(",") if name.strip()]
    if any(host == name or host.endswith(f".{name}") for name in names if name) or "*" in without:
        return []
    return [key for key in environ if key.lower() in _PROXIES and environ[key]]


def cpu_devices(environ: Mapping[str, str] = os.environ) -> int:
    """The number of CPU devices that JAX makes in this process.

    Source: jax 0.10.2, jax_num_cpu_devices; XLA's flag of the same meaning.
    """
    given = _CPU_DEVICES.search(environ.get("XLA_FLAGS", ""))
    text = environ.get("JAX_NUM_CPU_DEVICES", "")
    return max(1, int(given[1]) if given else int(text) if text.isdigit() else 1)


def interfaces(root: Path = Path("/")) -> list[Interface]:
    """The network interfaces that are up, and the active ports of InfiniBand, with their own rates.

    Source: Linux Documentation/ABI/testing/sysfs-class-net (operstate, speed in Mbit/s) and
    sysfs-class-infiniband (state "4: ACTIVE", rate "400 Gb/sec (4X NDR)").
    """
    found = []
    for folder in _folders(root / "sys/class/net"):
        if folder.name != "lo" and _text(folder / "operstate") == "up":
            speed = _text(folder / "speed")
            found.append(
                Interface(
                    name=folder.name,
                    bits_per_s=int(speed) * 10**6 if speed.isdigit() and int(speed) else None,
                )
            )
    for adapter in _folders(root / "sys/class/infiniband"):
        for port in _folders(adapter / "ports"):
            rate = re.match(r"\A([\d.]+) Gb/sec", _text(port / "rate"))
            if _text(port / "state").startswith("4") and rate:
                found.append(
                    Interface(
                        name=f"{adapter.name}:{port.name}",
                        kind="infiniband",
                        bits_per_s=int(float(rate[1]) * 10**9),
                    )
                )
    return found


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
