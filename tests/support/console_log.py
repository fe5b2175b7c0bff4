"""Console logs in openpi's form, for the tests of analyse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

REPORT = """Step 0: grad_norm=1.5705, loss=0.1146, param_norm=1803.1594
Step 5: grad_norm=1.3822, loss=0.0900, param_norm=1803.1594
Step 10: grad_norm=1.3865, loss=0.0881, param_norm=1803.1594
Step 15: grad_norm=1.2791, loss=0.0824, param_norm=1803.1594
"""


def log(
    steps: Iterable[int],
    losses: Iterable[float],
    *,
    param_norm: float = 1802.386,
    drift: float = 1e-5,
    grad_norms: Sequence[float] | None = None,
) -> str:
    """One line a step; the norm of the weights moves by `drift` a step."""
    pairs = list(zip(steps, losses, strict=True))
    norms = grad_norms if grad_norms is not None else [1.2] * len(pairs)
    rows = zip(pairs, norms, strict=True)
    return "".join(
        f"Step {s}: grad_norm={g:.4f}, loss={v:.4f}, param_norm={param_norm + drift * s:.4f}\n"
        for (s, v), g in rows
    )


def steps(count: int = 300, every: int = 100) -> list[int]:
    return [i * every for i in range(count)]


def flat(count: int = 300, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    return 0.1 * (1 + noise * np.random.default_rng(seed).standard_normal(count))


def falling(count: int = 300, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    return 0.02 + flat(count, noise, seed) * np.exp(-np.arange(count) / (count / 3))
