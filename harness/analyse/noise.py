"""The probability that a flat loss looks like a falling one, under noise with memory.

The null hypothesis is a flat line with first-order autoregressive noise of unknown memory. The statistics are
contrasts with falling shapes, over the long-run standard deviation of the residuals from a smooth curve.
Their distribution is simulated, with the memory drawn from a prior. The draws whose measured memory is
nearest to the data's are kept, so the answer includes the uncertainty of the memory.

Axes: S simulated curves, K points, C shapes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS = 8_000
NEAREST = 1_000
# Memory has a prior of Beta(1, b) on [0, 0.97]. Few points say little about it, so there the prior is flat.
_TOP, _FEW = 0.97, 40


class Null(NamedTuple):
    """Simulated flat curves: `t` [S, C], `memory` [S]."""

    t: Floats
    memory: Floats


class Measured(NamedTuple):
    """Statistics of each curve: `t` [S, C], lag-one autocorrelation `memory` [S], `long_run` variance [S].

    `long_run` is the long-run variance of one point.
    """

    t: Floats
    memory: Floats
    long_run: Floats


def simulate(points: int, profile: Floats | None = None) -> Null:
    """Flat curves whose noise varies along the curve as `profile`. Without a profile they are cached."""
    return _simulated(points) if profile is None else _simulate(points, profile)


@cache
def _simulated(points: int) -> Null:
    return _simulate(points, None)


def _simulate(points: int, profile: Floats | None) -> Null:
    """Flat curves of `points` points, seeded.

    `profile` [K] is the noise's size along the curve, if that is not constant.
    """
    generator = np.random.default_rng(20_260)
    memory = generator.beta(1.0, 1.0 if points < _FEW else 1.5, DRAWS) * _TOP
    noise = generator.standard_normal((DRAWS, points))
    noise[:, 0] /= np.sqrt(1 - memory**2)
    for k in range(1, points):
        noise[:, k] += memory * noise[:, k - 1]
    found = measure(noise if profile is None else noise * profile)
    return Null(found.t, found.memory)


def measure(curves: Floats, floor: float = 0.0) -> Measured:
    """t = ⟨shape, curve⟩ / sqrt(long-run variance) for each falling shape.

    `floor`: the noise's least variance.

    The long-run variance is that of AR(1) noise, s²·(1+r)/(1-r), or that of means of eight points where it is
    larger (noise with a slow and a fast part).
    """
    points = curves.shape[1]
    smooth, shapes = _smooth_basis(points), falling_shapes(points)
    left = curves - (curves @ smooth) @ smooth.T  # [S, K]
    squares = (left * left).sum(axis=1)
    memory = (left[:, 1:] * left[:, :-1]).sum(axis=1) / np.where(squares > 0, squares, 1.0)
    held = np.clip(memory, 0.0, _TOP)
    long_run = (squares / max(1, points - smooth.shape[1]) + floor) * (1 + held) / (1 - held)
    if points >= 48:
        groups = points // 8
        means = left[:, : groups * 8].reshape(len(curves), groups, 8).mean(axis=2)
        long_run = np.maximum(long_run, 8 * (means * means).sum(axis=1) / max(1, groups - smooth.shape[1]))
    centred = curves - curves.mean(axis=1, keepdims=True)
    return Measured(centred @ shapes.T / np.sqrt(np.maximum(long_run, 1e-300))[:, None], memory, long_run)


def chance(null: Null, found: Measured) -> float:
    """The probability that a flat curve falls at least as clearly as the one curve in `found`.

    Each curve is judged in the shape that fits it best.
    """
    near = null.t[nearest(null, found)]
    ranks = np.sort(near, axis=0)
    count = len(near)
    theirs = np.array(
        [count - np.searchsorted(ranks[:, c], near[:, c], "left") for c in range(near.shape[1])]
    ).min(axis=0)
    ours = min(count - int(np.searchsorted(ranks[:, c], found.t[0, c], "left")) for c in range(near.shape[1]))
    return (int((theirs <= ours).sum()) + 1) / (count + 1)


def straight_quantile(null: Null, found: Measured, level: float) -> float:
    """The quantile of |t| of the straight shape among flat curves like this one."""
    return float(np.quantile(np.abs(null.t[nearest(null, found), 0]), level))


def nearest(null: Null, found: Measured) -> npt.NDArray[np.intp]:
    """The flat curves whose measured memory is nearest to that of the one curve in `found`."""
    return np.argsort(np.abs(null.memory - found.memory[0]))[:NEAREST]


def falling_shapes(points: int) -> Floats:
    """[C, K]: a straight fall and two early ones that level off. Each sums to 0 and has length 1."""
    x = (np.arange(points) + 0.5) / points
    shapes = np.array([-x, np.exp(-x / 0.2), np.exp(-x / 0.05)])
    shapes -= shapes.mean(axis=1, keepdims=True)
    return shapes / np.linalg.norm(shapes, axis=1, keepdims=True)


def _smooth_basis(points: int) -> Floats:
    """[K, 3 or 5], orthonormal: the basis of a smooth loss curve."""
    x = (np.arange(points) + 0.5) / points
    decays = (0.04, 0.12, 0.4) if points >= 24 else (0.12,)
    return np.linalg.qr(np.stack([np.ones(points), x, *[np.exp(-x / tau) for tau in decays]], axis=1))[0]
