"""Digests of the arrays that a training starts from."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.checkpoint.digests import digest, leaf_digests
from harness.model.quantize import Quantized
from harness.train.state import TrainState


def digests_of(state: TrainState) -> dict[str, str]:
    """Path → sha256 of every parameter; for a quantized one, of the weights that it stands for."""
    everything: dict[str, Any] = {**state.trained, **state.frozen}
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
