"""Lays a run out over the devices of all its processes."""

from __future__ import annotations

from typing import Any

import jax

from harness.artifacts import Levers
from harness.errors import HarnessError
from harness.run.peers import Peers
from harness.run.watcher import Watcher
from harness.train.sharding import Layout, local_layout


def layout_here(levers: Levers, peers: Peers, watcher: Watcher) -> Layout:
    """The layout over the devices of all processes, an equal number of each.

    The devices of a process stand together. Shards of one replica are therefore on one machine as far as its
    devices reach, and a process holds rows of a batch that follow each other.
    Raises: HarnessError "devices-missing", "devices-uneven".
    """
    if peers.count == 1:
        return local_layout(levers)
    each, rest = divmod(levers.devices, peers.count)
    if rest:
        raise HarnessError(
            "devices-uneven",
            f"the plan's devices cannot be shared evenly by {peers.count} processes",
            got=f"{levers.devices} devices",
            need=f"a multiple of {peers.count}",
            fix=f"start {levers.devices} processes or fewer, or plan for a multiple of {peers.count} devices",
        )
    own: list[list[Any]] = [[] for _ in range(peers.count)]
    for device in sorted(jax.devices(), key=lambda device: device.id):
        own[device.process_index].append(device)
    for index, devices in enumerate(own):
        if len(devices) < each:
            raise HarnessError(
                "devices-missing",
                f"the plan is for {each} devices of each process, and process {index}"
                f" ({peers.hosts[index]}) has {len(devices)}",
                got=f"{len(devices)} ({jax.devices()[0].device_kind})",
                need=each,
                fix="start each process with all devices of its machine (CUDA_VISIBLE_DEVICES may hide some)",
            )
    if levers.fsdp > each and peers.index == 0:
        watcher.warn(
            f"a replica of the state is cut over {levers.fsdp} devices, and a machine has {each}: every layer"
            " is gathered over the network"
        )
    return Layout([device for devices in own for device in devices[:each]], levers.fsdp, levers.host)
