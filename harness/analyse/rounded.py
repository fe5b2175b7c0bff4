"""Reconstruction of steps that a trainer printed rounded (LeRobot's 1K, 25K, 1M).

Trainers log at a fixed interval f, so the steps of one session are k f, (k+1) f, …, and each lies within the
rounding of its printed value. If the number of samples is printed as well, it is the step times the batch and
tells more.

Axes: N records.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_MOST_CANDIDATES = 400


class Rebuilt(NamedTuple):
    """`steps` [N] as reconstructed, and `how`. `exact`: one spacing explains every line."""

    steps: Floats
    how: str
    exact: bool


def rebuilt(steps: Floats, units: Floats, samples: Floats, sample_units: Floats) -> Rebuilt | None:
    """The steps behind the printed ones. None if none was rounded.

    `units` are the units to which each was rounded, or 1.
    """
    coarse = units > 1
    if not coarse.any() or not np.isfinite(steps).all():
        return None
    low, high = steps - np.where(coarse, units / 2, 0), steps + np.where(coarse, units / 2, 0)
    batch = _batch(low, high, samples, sample_units)
    if batch is not None:
        half = np.where(sample_units > 1, sample_units / 2, 0)
        low, high = np.maximum(low, (samples - half) / batch), np.minimum(high, (samples + half) / batch)
        low = np.minimum(low, high)
    found, exact, spacings = steps.copy(), True, []
    edges = [0, *(np.flatnonzero(high[1:] < low[:-1]) + 1), len(steps)]
    given = _given_spacing(steps, coarse)
    for begin, end in pairwise(edges):
        one = slice(begin, end)
        spacing = _spacing(low[one], high[one], given)
        if spacing is None:
            found[one], exact = _spread(low[one], high[one]), False
        else:
            found[one] = _on_grid(low[one], high[one], spacing)
            spacings.append(spacing)
            # Few lines fit many spacings. The roundest is then a guess.
            exact &= spacing == given or bool(
                (high - low)[[begin, end - 1]].sum() <= spacing * (end - begin - 1)
            )
    every = f"one line every {spacings[0]:,} steps" if spacings and exact else "their order"
    how = f"samples ÷ a batch of {batch:,}, {every}" if batch is not None else every
    return Rebuilt(found, how, exact)


def _batch(low: Floats, high: Floats, samples: Floats, units: Floats) -> int | None:
    """The batch that agrees with all samples and steps. Of several: the only multiple of 8 or power of 2."""
    known = np.isfinite(samples) & (low > 0) & (samples > 0)
    if not known.any() or not np.isfinite(samples).all():
        return None
    half = np.where(units > 1, units / 2, 0)[known]
    least = int(np.ceil(((samples[known] - half) / high[known]).max() - 1e-9))
    most = int(np.floor(((samples[known] + half) / low[known]).min() + 1e-9))
    if not 1 <= least <= most or most - least > 1000:
        return None
    fitting = range(least, most + 1)
    kinds = (
        list(fitting),
        [batch for batch in fitting if batch % 8 == 0],
        [batch for batch in fitting if batch & (batch - 1) == 0],
    )
    return next((kind[0] for kind in kinds if len(kind) == 1), None)


def _given_spacing(steps: Floats, coarse: npt.NDArray[np.bool_]) -> int | None:
    """The spacing of the steps that were printed whole."""
    moved = np.diff(steps)[~coarse[1:] & ~coarse[:-1]]
    moved = moved[moved > 0]
    return int(np.median(moved)) if len(moved) else None


def _spacing(low: Floats, high: Floats, given: int | None) -> int | None:
    """The roundest spacing of which every line can be the next multiple."""
    count = len(low)
    if given is not None and _first_multiple(low, high, given) is not None:
        return given
    if count < 2:
        return None
    least, most = (low[-1] - high[0]) / (count - 1), (high[-1] - low[0]) / (count - 1)
    if not most >= 1 or most > 1e12:
        return None
    candidates = _roundest(max(1, int(np.ceil(least))), int(most))
    return next((each for each in candidates if _first_multiple(low, high, each) is not None), None)


def _roundest(least: int, most: int) -> list[int]:
    """Whole numbers from `least` to `most`. Those that a person would choose come first."""
    found: list[int] = []
    size = 10 ** len(str(most))
    while size and len(found) < _MOST_CANDIDATES:
        for part in (size, size // 2, size // 4):
            first = -(-least // part) * part if part else 0
            found += list(range(first, most + 1, part))[:_MOST_CANDIDATES] if part else []
        size //= 10
    return list(dict.fromkeys(found))[:_MOST_CANDIDATES]


def _first_multiple(low: Floats, high: Floats, spacing: int) -> int | None:
    """k such that line i can be step (k + i) spacing for every i. Of several, the middle one."""
    indices = np.arange(len(low))
    least, most = (
        np.ceil(low / spacing - indices - 1e-9).max(),
        np.floor(high / spacing - indices + 1e-9).min(),
    )
    return int((least + most) // 2) if least <= most else None


def _on_grid(low: Floats, high: Floats, spacing: int) -> Floats:
    first = _first_multiple(low, high, spacing)
    assert first is not None
    return np.asarray((first + np.arange(len(low))) * float(spacing))


def _spread(low: Floats, high: Floats) -> Floats:
    """Steps spread evenly over each rounding interval, for lines that no single spacing explains."""
    begins = np.flatnonzero(np.append(True, (np.diff(low) != 0) | (np.diff(high) != 0)))
    sizes = np.diff(np.append(begins, len(low)))
    within = np.arange(len(low)) - np.repeat(begins, sizes)
    share = (within + 0.5) / np.repeat(sizes, sizes)
    return np.floor(np.maximum.accumulate(low + share * (high - low)))
