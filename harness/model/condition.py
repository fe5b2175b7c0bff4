"""The condition of the adaptive norms: the flow time of the action tokens, one a sample or two."""

from __future__ import annotations

from typing import NamedTuple

import jax


class ByToken(NamedTuple):
    """The condition of action tokens of two flow times: some are given clean, the others are at their own.

    Shapes: own [B, D] and clean [B or 1, D], the embeddings of both times; given bool [B, T].
    """

    own: jax.Array
    clean: jax.Array
    given: jax.Array


# The embedding of the time [B, D], or of both times.
Condition = jax.Array | ByToken
