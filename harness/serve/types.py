"""What the server gives an engine and takes from it: the seam between them.

Axes: B rows of a batch, S the model's image size, T prompt tokens, H action horizon, D action_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from harness.serve.rtc import Form, PreviousRows

Array = np.ndarray[Any, Any]


class Inputs(NamedTuple):
    """What clients' observations became, B rows.

    `images`: camera of the model → uint8 [B, S, S, 3], resized with padding; an absent camera is an absent
    key. `tokens` int32 [B, T], where T is the length of a bucket. `token_mask` bool [B, T].
    """

    images: dict[str, Array]
    tokens: Array
    token_mask: Array


class Engine(Protocol):
    """The compiled model.

    `horizon` is H and `action_dim` D. `buckets` are the prompt lengths that are compiled, ascending; the last
    is the recipe's model.prompt_tokens. `batches` are the compiled batch sizes, ascending. `cameras` are the
    cameras of the model that the recipe's data has. `deviations` say what changes the actions beyond
    rounding. `attention` says whether kernels of our own or XLA's operations make that of the action rows.
    `rtc` is how the next chunk goes on from a previous one; None if it was not asked for.
    """

    horizon: int
    action_dim: int
    buckets: tuple[int, ...]
    batches: tuple[int, ...]
    cameras: tuple[str, ...]
    deviations: list[str]
    attention: Literal["kernels", "xla"]
    rtc: Form | None

    def warm(self, say: Callable[[str], None]) -> None:
        """Compiles every shape and runs it once; `say` hears how far it is."""
        ...

    def sample(self, inputs: Inputs, noise: Array, previous: PreviousRows | None = None) -> Array:
        """Normalized actions float32 [B, H, D] from noise float32 [B, H, D]; B is one of `batches`.

        With `previous` they go on from those chunks; for engines with `rtc`.
        """
        ...
