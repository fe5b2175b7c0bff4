"""hosts.json: the machines of a run that several processes train, as each reported itself."""

from __future__ import annotations

from typing import ClassVar

from harness.artifacts.base import Artifact
from harness.artifacts.machine import Machine
from harness.strict import Strict


class Interface(Strict):
    """A network interface that is up, but no loopback. `bits_per_s` is its own word; None where it says none.

    `kind` is "infiniband" for a port of a host channel adapter, which has no name of its own as an interface.
    """

    name: str
    kind: str = "ethernet"
    bits_per_s: int | None = None


class HostReport(Strict):
    """One process of a run, with its machine and its software.

    `devices` are those that it would train with. `clock` is its time at one moment for all, in seconds since
    the epoch. `proxies` are the names of the proxy variables that are set. `variables` choose how the
    machines talk. `data` says what is wrong with the dataset on this machine; None if it is the one that
    process 0 has read.
    """

    process: int
    name: str
    machine: Machine
    devices: int
    clock: float
    image: str | None = None
    image_id: str | None = None
    image_digest: str | None = None
    lock_sha256: str | None = None
    source_sha256: str
    packages_sha256: str
    python: str
    proxies: list[str] = []
    interfaces: list[Interface] = []
    variables: dict[str, str] = {}
    data: str | None = None


class Hosts(Artifact):
    """The processes of a run, in the order of their numbers. Process 0 writes it."""

    FILE: ClassVar[str] = "hosts.json"
    hosts: list[HostReport]
