"""Plans for several machines: what they are together, how fast they talk, and how they share a batch.

Every machine has the same cards and takes the same number of them. Memory is that of the machine that has the
least. The network is the slowest link: replicas of the state that lie on different machines sum their
gradients over it, and shards that lie on different machines gather every layer over it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.artifacts import Candidate, Cluster, HostReport, Levers
from harness.errors import HarnessError
from harness.plan import cost, memory
from harness.plan.place import Place, present
from harness.recipe.schema import Recipe
from harness.units import format_seconds

# Bytes a second of a machine's network where nothing tells them: 100 Gb/s. A plan that assumes it says so.
ASSUMED = 100e9 / 8
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}

Word = Literal["given", "interface", "assumed", "within"]


class Net(NamedTuple):
    """The rate of a machine's network, one way, and whose word it is. None: no network is between them."""

    bytes_per_s: float | None
    word: Word


def rate(text: str) -> float:
    """Bytes a second of "100Gb", "25GbE", "400 Gbit/s" or "12.5GB/s": a small b is a bit, a large one a byte.

    Raises: HarnessError "net-rate-invalid".
    """
    found = re.fullmatch(
        r"\A\s*(\d+(?:\.\d+)?)\s*([KMGTkmgt])i?(b|bit|bits|bE|bps|B|Bps|bytes)(?:/s|ps)?\s*", text
    )
    value = float(found[1]) * _UNITS[found[2].lower()] if found else 0.0
    if found is None or not value:
        raise HarnessError(
            "net-rate-invalid",
            f"--net {text!r} is no rate of a network",
            got=text,
            need="a rate each way of one machine, such as 100Gb (bits) or 12.5GB (bytes)",
            fix="--net 100Gb",
        )
    return value if found[3].startswith("B") or found[3] == "bytes" else value / 8


def net_of(hosts: Sequence[HostReport], given: float | None) -> Net:
    """The network of these machines: as given, else as their interfaces say, else as it is assumed."""
    if given is not None:
        return Net(given, "given")
    if len({host.name for host in hosts}) == 1:
        return Net(None, "within")
    # Ports of InfiniBand add up. Of Ethernet one interface is taken: nothing says that several are bonded.
    each: list[int] = []
    for host in hosts:
        ports = [one for one in host.interfaces if one.bits_per_s is not None]
        fast = [one.bits_per_s or 0 for one in ports if one.kind == "infiniband"]
        each.append(sum(fast) or max((one.bits_per_s or 0 for one in ports), default=0))
    slowest = min(each, default=0)
    return Net(slowest / 8, "interface") if slowest else Net(ASSUMED, "assumed")


def linked(place: Place, given: float | None) -> Place:
    """A place of machines that are not here, with the network between them."""
    if place.hosts == 1:
        return place
    net = net_of((), given)
    return place._replace(net_bytes_per_s=net.bytes_per_s, net=net.word)


def everywhere(
    recipe: Recipe, hosts: Sequence[HostReport], *, device: str | None, given: float | None
) -> Place:
    """The place over the devices of all these machines.

    Raises: HarnessError "hosts-unlike", "host-without-devices", and those of `present`.
    """
    found = [
        present(recipe, host.machine, device=device, vram_bytes=None, host_ram_bytes=None) for host in hosts
    ]
    kinds = [one.card.device if one.card is not None else one.platform for one in found]
    if len(set(kinds)) > 1:
        raise HarnessError(
            "hosts-unlike",
            "the machines of a run must have the same cards: others choose other kernels, and sum otherwise",
            got="; ".join(f"{host.name}: {kind}" for host, kind in zip(hosts, kinds, strict=True)),
            need="one kind of card on all",
            fix="start the run on machines that are alike (srun --constraint or --gres=gpu:TYPE:N)",
        )
    counts = [
        host.devices if one.platform == "cpu" else one.devices for host, one in zip(hosts, found, strict=True)
    ]
    each, first = min(counts), found[0]
    net = net_of(hosts, given)
    names = [host.name for host in hosts]
    title = first.card.device if first.card is not None else first.platform
    notes = [note for one in found for note in one.notes]
    if max(counts) > each:
        least = hosts[counts.index(each)].name
        notes.append(f"{each} devices of each machine are used: {least} has no more")
    of_cpu = [_share(one.free_bytes, names, host.name) for one, host in zip(found, hosts, strict=True)]
    return first._replace(
        name=f"{len(hosts)} {'hosts' if len(set(names)) > 1 else 'processes'} of "
        + (f"{each} x {title}" if each > 1 else title),
        devices=each * len(hosts),
        hosts=len(hosts),
        host_names=tuple(names),
        host_uuids=tuple(one.uuids[:each] for one in found),
        net_bytes_per_s=net.bytes_per_s,
        net=net.word,
        uuids=found[0].uuids[:each],
        free_bytes=_least(of_cpu if first.platform == "cpu" else [one.free_bytes for one in found]),
        total_bytes=_least([one.total_bytes for one in found]),
        pool_bytes=_least([one.pool_bytes for one in found]),
        margin_bytes=max(one.margin_bytes for one in found),
        wsl=any(one.wsl for one in found),
        # Several processes of one machine share its memory and its cores.
        host_usable_bytes=_least(
            [_share(one.host_usable_bytes, names, host.name) for one, host in zip(found, hosts, strict=True)]
        ),
        cores=min(
            (one.cores or 1.0) / names.count(host.name) for one, host in zip(found, hosts, strict=True)
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def described(recipe: Recipe, place: Place, chosen: Candidate | None) -> Cluster | None:
    """What the plan says of its machines; None if there is one.

    One machine with the same shards needs the same memory of a device, so it could train too, unless the
    shards need more devices than it has.
    """
    if place.hosts == 1:
        return None
    each = place.devices // place.hosts
    exchange = alone = None
    if chosen is not None and place.card is not None and place.named:
        exchange = cost.exchange_seconds(recipe, chosen.levers, place.net_bytes_per_s)
        if chosen.levers.fsdp <= each:
            alone = min(
                cost.seconds_per_step(recipe, levers, place.card, place.cores)
                for levers in _on_one_host(chosen, place.usable_bytes)
            )
    return Cluster(
        names=list(place.host_names),
        devices_per_host=each,
        net_bytes_per_s=place.net_bytes_per_s,
        net=place.net,
        exchange_s=exchange,
        one_host_s=alone,
        device_uuids=[list(uuids) for uuids in place.host_uuids] if any(place.host_uuids) else [],
    )


def _on_one_host(chosen: Candidate, usable_bytes: int | None) -> list[Levers]:
    """The ways in which one of the machines would do the chosen plan's work.

    It accumulates what the others did, or computes more rows at once where its memory is counted to hold
    their activations.
    """
    levers, parts = chosen.levers, chosen.breakdown
    each = parts.get(memory.ACTIVATIONS, parts.get(memory.REST, 0))
    room = (usable_bytes or 0) - (chosen.device_bytes or 0)
    times = [factor for factor in range(2, levers.hosts + 1) if levers.hosts % factor == 0]
    return [one_host(levers), *(one_host(levers, more) for more in times if (more - 1) * each <= room)]


def one_host(levers: Levers, times: int = 1) -> Levers:
    """The same shards on one of the machines, which computes `times` as many rows at once.

    `times` divides the number of machines. The rest of what the others did is accumulated.
    """
    return levers.model_copy(
        update={
            "hosts": 1,
            "devices": levers.devices // levers.hosts,
            "microbatch": levers.microbatch * times,
            "accumulation_steps": levers.accumulation_steps * levers.hosts // times,
        }
    )


def refuse_slower(cluster: Cluster | None, chosen: Candidate | None) -> None:
    """Raises: HarnessError "slower-than-one-host"."""
    refusal = slower(cluster, chosen)
    if refusal is not None:
        raise refusal


def slower(cluster: Cluster | None, chosen: Candidate | None) -> HarnessError | None:
    """Why one machine alone would be faster, or None."""
    if cluster is None or chosen is None or chosen.seconds_per_step is None or cluster.one_host_s is None:
        return None
    if chosen.seconds_per_step < cluster.one_host_s:
        return None
    hosts, net = chosen.levers.hosts, format_rate(cluster.net_bytes_per_s)
    return HarnessError(
        "slower-than-one-host",
        f"{hosts} hosts would be slower than one of them: the network between them is the slowest link",
        got=(
            f"{format_seconds(chosen.seconds_per_step)} a step, of which"
            f" {format_seconds(cluster.exchange_s)} over {net} ({cluster.net})"
        ),
        need=f"less than {format_seconds(cluster.one_host_s)}, the step of one host",
        fix="--net RATE if the network is faster; one host; or --allow-slower",
    )


def format_rate(bytes_per_s: float | None) -> str:
    """`"100 Gb/s"`; "no network" for None."""
    return "no network" if bytes_per_s is None else f"{bytes_per_s * 8 / 1e9:g} Gb/s"


def notes_on(place: Place, cluster: Cluster | None) -> list[str]:
    """What a person should know of the network that the plan counts with."""
    if cluster is None:
        return []
    if cluster.net_bytes_per_s is None:
        return ["all processes are on one machine: no network is between them"]
    said = {
        "given": "as --net says",
        "interface": "as its interfaces say; not measured",
        "assumed": "assumed; --net RATE says what it is",
    }[cluster.net]
    notes = [f"network of each host: {format_rate(cluster.net_bytes_per_s)}, {said}"]
    if place.named and cluster.exchange_s is not None:
        share = format_seconds(cluster.exchange_s)
        alone = (
            f"; one host would take {format_seconds(cluster.one_host_s)}"
            if cluster.one_host_s is not None
            else "; one host would not hold these shards"
        )
        notes.append(
            f"{share} of a step are the exchange over the network, counted as if nothing overlapped{alone}"
        )
    return notes


def _least(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def _share(size: int | None, names: Sequence[str], name: str) -> int | None:
    return None if size is None else size // names.count(name)
