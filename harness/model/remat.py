"""What the backward pass keeps of a layer, and what it computes again.

Each level keeps what the one before it keeps, and more:

- "block": a layer's input alone. The whole layer is computed again.
- "mlp": the two wide products of the gated feed-forward, in the language model and the expert. They are most
  of what "block" computes again.
- "names": every product that a gradient needs: also queries, keys, values and the result of attention, and
  those of the vision tower with its first feed-forward product. Norms, activations and logits are computed
  again.
- "none": all of it.

All compute the same numbers but for their rounding: XLA may fuse what is kept otherwise than what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["block", "mlp", "names", "none"]
# Names of results that a level may keep. Of the language model and the expert:
GATE, UP = "gate", "up"
QUERY, KEY_VALUE, ENCODED = "query", "key_value", "encoded"
# Of the vision tower, whose heads and feed-forward have other widths:
VISION_QUERY, VISION_KEY_VALUE, VISION_ENCODED = "vision_query", "vision_key_value", "vision_encoded"
VISION_HIDDEN = "vision_hidden"

_MLP = (GATE, UP)
_KEPT: dict[Remat, tuple[str, ...]] = {
    "block": (),
    "mlp": _MLP,
    "names": (
        *_MLP,
        QUERY,
        KEY_VALUE,
        ENCODED,
        VISION_QUERY,
        VISION_KEY_VALUE,
        VISION_ENCODED,
        VISION_HIDDEN,
    ),
}


def named(x: jax.Array, name: str) -> jax.Array:
    """`x`, which a level of rematerialization may keep by this name."""
    return checkpoint_name(x, name)


def rematerialized(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`layer`, of which the backward pass keeps what the level says."""
    if remat == "none":
        return layer
    kept = _KEPT[remat]
    policy = jax.checkpoint_policies.save_only_these_names(*kept) if kept else None
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
