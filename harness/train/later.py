"""Makes what a checkpoint holds of a state when it is written, and not before."""

from __future__ import annotations

from typing import Any

from harness.checkpoint.format import CHUNK_BYTES
from harness.checkpoint.pieces import MadeRows
from harness.model.quantize import Quantized
from harness.train.state import TrainState


def made_later(state: TrainState) -> TrainState:
    """The state, whose quantized kernels are made dense some rows at a time, for a streamed save.

    Kernels over several devices stay as they are: what is made of them may need all devices at once.
    """
    return state._replace(frozen={path: _later(value) for path, value in state.frozen.items()})


def _later(value: Any) -> Any:
    if not isinstance(value, Quantized) or len(value.codes.sharding.device_set) > 1:
        return value
    shape, dtype = value.shape, value.dtype
    # A kernel that is blocked along its first axis is small, and cannot be cut there.
    cuttable = value.ndim + value.axis > 0
    row_bytes = dtype.itemsize * (value.codes.size * 8 // value.bits) // shape[0]
    rows = min(max(CHUNK_BYTES // row_bytes, 1), shape[0]) if cuttable else shape[0]
    return MadeRows(shape, dtype, rows, lambda start, stop: value[start:stop].on_host())
