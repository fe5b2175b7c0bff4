"""How far other statistics are from ours: an openpi norm_stats.json, or the one inside a released checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

from harness.artifacts import Comparison, Difference, DimensionStats, NormStats, Statistic
from harness.errors import HarnessError

_STATISTICS: tuple[Statistic, ...] = ("mean", "std", "q01", "q99")


def compare(ours: NormStats, path: Path) -> Comparison:
    """`ours` beside the norm_stats.json at `path` (a file, or a directory that holds one).

    Padding with zeros to the model's action_dim, as some openpi versions wrote it, does not count as a dimension.

    Raises: HarnessError "norm-stats-not-found" or "norm-stats-invalid".
    """
    file = path / "norm_stats.json" if path.is_dir() else path
    theirs = read_norm_stats(file)
    differences, only_ours, only_theirs = [], {}, {}
    for key, own in ours.norm_stats.items():
        other = theirs[key]
        width = width_without_padding(other, len(own.mean))
        shared = min(len(own.mean), width)
        only_ours[key], only_theirs[key] = len(own.mean) - shared, width - shared
        for dimension in range(shared):
            spread = own.q99[dimension] - own.q01[dimension]
            for name in _STATISTICS:
                a, b = getattr(own, name)[dimension], getattr(other, name)[dimension]
                share = abs(b - a) / spread if spread > 0 else None
                differences.append(Difference(key=key, dimension=dimension, statistic=name, ours=a, theirs=b, share=share))
    # A dimension without spread that differs is the worst case; one that agrees is the best.
    differences.sort(key=lambda d: -(d.share if d.share is not None else math.inf if d.ours != d.theirs else 0.0))
    shares = [d.share for d in differences if d.share is not None]
    return Comparison(
        inputs=ours.inputs, path=str(file), differences=differences, largest_share=max(shares, default=None), only_ours=only_ours, only_theirs=only_theirs
    )


def read_norm_stats(file: Path) -> dict[Literal["state", "actions"], DimensionStats]:
    """State and action statistics of a file in openpi's form; other keys beside them are left alone.

    Raises: HarnessError "norm-stats-not-found" or "norm-stats-invalid".
    """
    try:
        body = json.loads(file.read_bytes())
        found = body["norm_stats"]
        return {"state": _vectors(found["state"]), "actions": _vectors(found["actions"])}
    except OSError as error:
        raise HarnessError(
            "norm-stats-not-found",
            f"cannot read {file}",
            got=error.strerror,
            need="a norm_stats.json, or the directory that holds it",
            fix="name the file; in an openpi checkpoint it is <step>/assets/<asset id>/norm_stats.json",
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HarnessError(
            "norm-stats-invalid",
            f"{file} is not openpi's norm_stats.json",
            got=f"{type(error).__name__}: {error}"[:200],
            need="norm_stats with state and actions, each with mean, std, q01 and q99 of one length",
            fix="name another file; openpi writes this one with scripts/compute_norm_stats.py",
        ) from error


def _vectors(value: dict[str, list[float]]) -> DimensionStats:
    vectors = {name: [float(x) for x in value[name]] for name in _STATISTICS}
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) != 1 or not all(math.isfinite(x) for vector in vectors.values() for x in vector):
        raise ValueError("vectors of different lengths, or not finite")
    return DimensionStats(**vectors)


def width_without_padding(stats: DimensionStats, least: int) -> int:
    """How many dimensions there are without zero padding behind the first `least`."""
    width = len(stats.mean)
    while width > least and not any(getattr(stats, name)[width - 1] for name in _STATISTICS):
        width -= 1
    return width
