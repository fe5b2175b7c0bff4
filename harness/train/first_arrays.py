"""Digests of the arrays that a training starts from."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.checkpoint.digests import digest, leaf_digests
from harness.checkpoint.shared_digests import shared_digests
from harness.model.quantize import Quantized
from harness.run.directory import sha256_json
from harness.run.peers import ALONE, Peers
from harness.train.arrays import whole
from harness.train.state import TrainState


def digests_of(state: TrainState, peers: Peers = ALONE) -> dict[str, str]:
    """Path → sha256 of every parameter; for a quantized one, of the weights that it stands for.

    For a parameter that is cut over several processes: "tiles-" and a sha256 over the digests of its tiles.
    """
    everything: dict[str, Any] = {**state.trained, **state.frozen}
    if peers.count > 1:
        return _of_all(everything, peers)
    there = {
        path: value
        for path, value in everything.items()
        if not isinstance(value, Quantized) and value.sharding.memory_kind != "pinned_host"
    }
    found = leaf_digests(there)
    # The others, one at a time on the host: quantized parameters are decoded there, and arrays in host memory
    # cannot be sliced as on a device.
    for path in everything.keys() - there.keys():
        value = everything[path]
        found[path] = digest(value.on_host() if isinstance(value, Quantized) else np.asarray(value))
    return dict(sorted(found.items()))


def _of_all(everything: dict[str, Any], peers: Peers) -> dict[str, str]:
    dense = {path: value for path, value in everything.items() if not isinstance(value, Quantized)}
    found, tiles = shared_digests(dense, peers)
    found |= {path: f"tiles-{sha256_json(tiled._asdict())}" for path, tiled in tiles.items()}
    # One at a time on the host. Every process helps to decode, and has the same.
    for path in sorted(everything.keys() - dense.keys()):
        found[path] = digest(everything[path].on_host(whole))
    return dict(sorted(found.items()))
