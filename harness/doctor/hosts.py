"""Checks of the machines of a run that several processes train: that they are alike, and can work together.

That they reach the coordinator's port, and see one run directory, was found out when they met: otherwise
there would be no reports to look at (harness/run/meeting.py, harness/run/shared_directory.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.artifacts import HostReport
from harness.artifacts.doctor import Finding
from harness.doctor.situation import NotNeeded, Situation, error, warning
from harness.received.text import word

# Clocks of machines that a time server keeps differ by milliseconds; the answers come within a second.
_CLOCK_S = 5.0
# What must be the same on all, in words, and how to read it from a report.
_SOFTWARE: tuple[tuple[str, Callable[[HostReport], str | None]], ...] = (
    ("image", lambda host: host.image_digest),
    ("lock of packages", lambda host: host.lock_sha256),
    ("code of the harness", lambda host: host.source_sha256),
    ("installed packages", lambda host: host.packages_sha256),
    ("Python", lambda host: host.python),
)
# Bridges and virtual pairs of a container engine: no machine reaches another one by them.
_INSIDE = ("docker", "br-", "veth", "virbr", "cni", "podman", "flannel", "cali", "tun", "tap", "ifb")


def software(situation: Situation) -> Iterator[Finding]:
    """Checks that all machines have the same image, packages and code.

    Other code or packages make another program, or another sum of it.
    """
    first = situation.hosts[0]
    for host in situation.hosts[1:]:
        for what, read in _SOFTWARE:
            own, of_first = read(host), read(first)
            if own != of_first:
                yield error(
                    "software",
                    f"{_named(host)}: {what} {_short(own)}; {_named(first)} has {_short(of_first)}",
                    f"the same {what} on all hosts",
                    _install(first, host),
                )


def _install(first: HostReport, host: HostReport) -> str:
    if first.image is not None:
        return f"on {host.name}: start the process in the image {word(first.image)}"
    return f"on {host.name}: git pull && ci/local; or keep one environment for all on the shared file system"


def driver(situation: Situation) -> Iterator[Finding]:
    """Checks that all machines have the same driver: it compiles what XLA hands to the GPU."""
    if not situation.on_gpu:
        raise NotNeeded("the run is on CPUs")
    first = situation.hosts[0]
    for host in situation.hosts[1:]:
        own, of_first = host.machine.driver_version, first.machine.driver_version
        if own != of_first:
            yield error(
                "driver of hosts",
                f"{_named(host)}: driver {own}; {_named(first)} has {of_first}",
                "the same driver on all hosts",
                f"install driver {of_first} on {host.name}, or choose hosts that are alike",
            )


def devices(situation: Situation) -> Iterator[Finding]:
    """Checks that every machine has as many devices as the plan takes of each, and that none stays idle."""
    planned = situation.plan.cluster.devices_per_host if situation.plan and situation.plan.cluster else None
    if planned is None:
        raise NotNeeded("there is no plan for several hosts")
    kind = "GPUs" if situation.on_gpu else "CPU devices"
    for host in situation.hosts:
        if host.devices == planned:
            continue
        make = error if host.devices < planned else warning
        yield make(
            "devices of hosts",
            f"{_named(host)}: {host.devices} {kind}, of which the plan takes {min(planned, host.devices)}",
            f"{planned} on every host",
            (
                f"nvidia-smi -L on {host.name} shows them; CUDA_VISIBLE_DEVICES and the launcher"
                " (srun --gpus-per-node) may hide some on the others"
                if situation.on_gpu
                else "the same --xla_force_host_platform_device_count in XLA_FLAGS of every process"
            ),
        )


def data(situation: Situation) -> Iterator[Finding]:
    """Checks that every machine has the data that process 0 has read."""
    first = situation.hosts[0]
    paths = [part.path for part in situation.dataset.parts] if situation.dataset else []
    for host in situation.hosts[1:]:
        if host.data is not None:
            path = next((path for path in paths if host.data.startswith(path)), paths[0] if paths else "DIR")
            yield error(
                "data of hosts",
                f"{_named(host)}: {host.data}",
                "the same dataset at the same path on all hosts",
                (
                    f"on {host.name}: rsync -a {word(f'{first.name}:{path}/')} {word(f'{path}/')}; or keep"
                    " the data on the shared file system (HF_HOME and HARNESS_CACHE for what is downloaded)"
                ),
            )


def clocks(situation: Situation) -> Iterator[Finding]:
    """Checks that the clocks agree: times of files on a shared disk decide what is current."""
    first = situation.hosts[0]
    for host in situation.hosts[1:]:
        apart = host.clock - first.clock
        if abs(apart) > _CLOCK_S:
            yield warning(
                "clocks of hosts",
                f"{_named(host)}: its clock is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}",
                f"clocks within {_CLOCK_S:.0f} s of each other",
                f"on {host.name}: timedatectl set-ntp true",
            )


def proxies(situation: Situation) -> Iterator[Finding]:
    """Checks that no process would look for the coordinator behind a proxy.

    Source: jax 0.10.2, jax/_src/distributed.py, which warns that it may hang.
    """
    for host in situation.hosts:
        if host.proxies:
            yield warning(
                "proxies of hosts",
                f"{_named(host)}: {', '.join(host.proxies)} set, and no_proxy does not name the coordinator",
                "a direct connection between the hosts",
                f"no_proxy={word(situation.coordinator)} in every process, or unset {' '.join(host.proxies)}",
            )


def interface(situation: Situation) -> Iterator[Finding]:
    """Checks that NCCL can know by which network interface the machines reach each other."""
    if not situation.on_gpu:
        raise NotNeeded("the run is on CPUs")
    if len({host.name for host in situation.hosts}) == 1:
        raise NotNeeded("all processes are on one machine")
    for host in situation.hosts:
        names = [one.name for one in host.interfaces if one.kind == "ethernet"]
        outside = [name for name in names if not name.startswith(_INSIDE)]
        chosen = host.variables.get("NCCL_SOCKET_IFNAME")
        if chosen is None and len(outside) > 1:
            yield warning(
                "network interface",
                f"{_named(host)}: {', '.join(outside)}; NCCL takes the first that it finds",
                "the interface by which the hosts reach each other",
                f"NCCL_SOCKET_IFNAME={word(_common(situation, outside))} in every process",
            )
        elif chosen is not None and not any(_means(chosen, name) for name in names):
            yield error(
                "network interface",
                f"{_named(host)}: NCCL_SOCKET_IFNAME={chosen} names none of {', '.join(names) or 'none'}",
                "an interface that is up on this host",
                f"NCCL_SOCKET_IFNAME={word(outside[0])} in this process" if outside else "ip -br link",
            )


def _means(chosen: str, name: str) -> bool:
    """Whether NCCL_SOCKET_IFNAME means the interface.

    A name is a prefix; after "=" it is whole; after "^" the named ones are left out.
    Source: NCCL documentation, NCCL_SOCKET_IFNAME.
    """
    whole, without = chosen.startswith(("=", "^=")), chosen.startswith("^")
    names = [each for each in chosen.lstrip("^=").split(",") if each]
    listed = any(name == each if whole else name.startswith(each) for each in names)
    return listed != without


def _common(situation: Situation, names: list[str]) -> str:
    """The fastest interface that every machine has, else the first of `names`."""
    everywhere = set(names).intersection(
        *({one.name for one in host.interfaces} for host in situation.hosts)
    ) or {names[0]}
    rates = {one.name: one.bits_per_s or 0 for one in situation.hosts[0].interfaces}
    return max(sorted(everywhere), key=lambda name: rates.get(name, 0))


def one_host(situation: Situation) -> Iterator[Finding]:
    """Checks that the machines are faster together than one of them alone, as the plan predicts."""
    slower = situation.slower
    if slower is not None:
        yield error("one host", f"{slower.what}: {slower.got}", slower.need or "a faster network", slower.fix)


def _named(host: HostReport) -> str:
    return f"{host.name} (process {host.process})"


def _short(value: str | None) -> str:
    if value is None:
        return "not known"
    return value.removeprefix("sha256:")[:16]
