"""Says how far statistics that were computed again are from those of the run."""

from __future__ import annotations

from collections.abc import Iterator

from harness.artifacts import Manifest, NormStats
from harness.artifacts.verdict import Compared
from harness.errors import HarnessError
from harness.run.directory import RunDir, sha256_json

# Float64 has 2.2e-16. Sums over millions of rows lose some digits of it, in another order others.
_ROUNDING = 1e-11
_NAMES = ("mean", "std", "q01", "q99")


def with_distance(
    rows: list[Compared], run: RunDir, manifest: Manifest, found: NormStats | None
) -> list[Compared]:
    """The rows, of which that of differing statistics says how far apart they are.

    Rounding alone, by another processor, Python or numpy, matters no more: what it does to the steps is
    compared step by step.
    """
    try:
        own = run.read(NormStats)
    except HarnessError:
        own = None
    if own is None or found is None or sha256_json(own.norm_stats) != manifest.norm_stats_sha256:
        return rows
    told = _told(own, found)
    return [
        row.model_copy(update=told) if row.field == "norm_stats" and row.status == "differs" else row
        for row in rows
    ]


def _told(own: NormStats, found: NormStats) -> dict[str, object]:
    if {key: len(one.mean) for key, one in own.norm_stats.items()} != {
        key: len(one.mean) for key, one in found.norm_stats.items()
    }:
        return {"note": "other dimensions"}
    far, where = max(_distances(own, found))
    if far <= _ROUNDING:
        return {
            "matters": False,
            "note": f"by rounding alone: at most {far:.1g} of the spread or the value, {where}",
        }
    return {"note": f"by up to {far:.2g} of the spread or the value, {where}"}


def _distances(own: NormStats, found: NormStats) -> Iterator[tuple[float, str]]:
    """How far each value is from the other, as a part of the dimension's spread or of the larger of them."""
    for key, one in own.norm_stats.items():
        other = found.norm_stats[key]
        for name in _NAMES:
            for d, (a, b) in enumerate(zip(getattr(one, name), getattr(other, name), strict=True)):
                scale = max(one.q99[d] - one.q01[d], abs(a), abs(b))
                yield (abs(a - b) / scale if a != b else 0.0), f"{key}[{d}].{name}"
