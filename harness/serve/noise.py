"""The noise that a request's sampling starts from, drawn on the host.

A seed's noise is `jax.random.normal(jax.random.key(seed), (1, H, D))`, as `harness predict` draws it. It does
not depend on the batch, on the device or on who else is served.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# jax.random.key uses 32 bits of a seed.
MOST_SEED = 2**32 - 1
Draw = Callable[[int], np.ndarray]


def drawer(horizon: int, action_dim: int) -> Draw:
    """draw(seed) → noise float32 [H, D], computed by the host's processor."""
    import jax

    host = jax.devices("cpu")[0]
    normal = jax.jit(lambda key: jax.random.normal(key, (1, horizon, action_dim)))

    def draw(seed: int) -> np.ndarray:
        with jax.default_device(host):
            return np.asarray(normal(jax.random.key(seed)))[0]

    return draw
