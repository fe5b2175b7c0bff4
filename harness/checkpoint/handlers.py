"""Orbax's handlers of the items of a step, for a save in the background and for one that is streamed."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from harness.checkpoint.format import CHUNK_BYTES
from harness.checkpoint.pieces import MadeRows
from harness.checkpoint.streamed import StreamedArrays, StreamedRows, Wrote
from harness.checkpoint.texts import TextFiles
from harness.run.peers import Peers
from harness.run.steps import TREES


def items_handler(
    options: ocp.AsyncOptions, peers: Peers, *, streamed: Wrote | None
) -> ocp.CompositeCheckpointHandler:
    """The handler of a step.

    With `streamed`, which is told what was written, its arrays must not change before the save is whole.
    """
    # Pinned host memory is capped under WSL2, and its pool grows with every save (google/orbax#2090).
    given: dict[str, Any] = {"enable_pinned_host_transfer": False}
    if streamed is not None:
        # One for both trees, so that both together stay within its memory.
        given["type_handler_registry"] = _streamed_types(streamed)
    trees = {name: ocp.PyTreeCheckpointHandler(**given) for name in TREES}
    return ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(async_options=options),
        **trees,
        assets=TextFiles(peers),
        harness=TextFiles(peers),
    )


def _streamed_types(wrote: Wrote) -> ocp.type_handlers.TypeHandlerRegistry:
    types = ocp.type_handlers
    return types.create_type_handler_registry(
        *((number, types.ScalarHandler()) for number in (int, float, np.number)),
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        (MadeRows, StreamedRows(wrote)),
        (jax.Array, StreamedArrays(wrote)),
    )


def tree_save(tree: Any) -> ocp.args.PyTreeSave:
    """How a tree of arrays is saved: in chunks that a reader can hold."""
    return ocp.args.PyTreeSave(
        tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    )
