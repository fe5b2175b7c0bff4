"""Normalization statistics written by other programs.

Read are openpi's norm_stats.json, with or without its wrapper, and LeRobot's stats.json and
episodes_stats.jsonl. Statistics that the normalization needs must be present and plausible. Others may be
missing; a missing one is an empty vector.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.artifacts import DimensionStats, NormStats, Statistic
from harness.data.transforms import Normalization
from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.received.files import read_received
from harness.received.json import parse_json
from harness.received.pointers import is_pointer, pointer
from harness.recipe.schema import Data
from harness.units import MIB

Key = Literal["state", "actions"]
STATISTICS: tuple[Statistic, ...] = ("mean", "std", "q01", "q99")
_NEEDED: dict[Normalization, tuple[Statistic, ...]] = {"quantile": ("q01", "q99"), "zscore": ("mean", "std")}
# The names used by openpi, LeRobot and users. A recipe's own names are tried first.
_NAMES: dict[Key, tuple[str, ...]] = {
    "state": ("state", "observation.state"),
    "actions": ("actions", "action"),
}
_FILES = (
    NormStats.FILE,
    "meta/stats.json",
    "stats.json",
    "meta/episodes_stats.jsonl",
    "episodes_stats.jsonl",
)
_MOST_BYTES, _MOST_LINES_BYTES = 64 * MIB, 256 * MIB
_MOST_DIMENSIONS = 65_536


class Theirs(NamedTuple):
    """The statistics of a file. `form` describes the file's kind."""

    file: Path
    form: str
    stats: dict[Key, DimensionStats]


def read_norm_stats(
    path: Path,
    mode: Normalization = "quantile",
    *,
    keys: tuple[Key, ...] = ("state", "actions"),
    names: dict[Key, str] | None = None,
    root: Path | None = None,
) -> Theirs:
    """State and action statistics of a file, or of a directory that holds one.

    `names` are the recipe's features, which are the keys in LeRobot's files. `root` is the checkpoint that
    must contain the file. Without `root`, a link that the user named is followed.

    Raises: HarnessError "norm-stats-not-found", "norm-stats-invalid" or "git-lfs-pointer";
    "file-leaves-root", "file-not-regular", "file-too-large".
    """
    folder, file = os.path.isdir(path), file_in(path)
    lines = file.suffix == ".jsonl"
    try:
        inside = root or (path if folder else file.resolve().parent)
        data = read_received(file, inside, _MOST_LINES_BYTES if lines else _MOST_BYTES)
        if is_pointer(data):
            raise pointer(file)
        body = _of_episodes(data.splitlines()) if lines else parse_json(data)
    except (OSError, RuntimeError) as error:
        raise HarnessError(
            "norm-stats-not-found",
            f"cannot read {file}",
            got=getattr(error, "strerror", None) or str(error),
            need="a norm_stats.json, or the directory that holds it",
            fix=may_be_opened(file)
            if isinstance(error, PermissionError)
            else "name the file; in an openpi checkpoint it is <step>/assets/<asset id>/norm_stats.json",
        ) from error
    except ValueError as error:
        raise _invalid(file, f"it is not JSON: {error}", "norm_stats with state and actions") from error
    form, found = _form(file, body)
    if lines:
        form = "LeRobot's episodes_stats.jsonl, its episodes put together"
    stats: dict[Key, DimensionStats] = {}
    for key in keys:
        own = (names or {}).get(key)
        name = next((each for each in ((own,) if own else ()) + _NAMES[key] if each in found), None)
        if name is None:
            raise _invalid(
                file,
                f"{form} without {key}: it has {', '.join(map(str, list(found)[:20])) or 'nothing'}",
                f"statistics of {key}",
            )
        stats[key] = checked(file, form, name, found[name], mode)
    return Theirs(file, form, stats)


def file_in(path: Path) -> Path:
    """The file of statistics: `path` itself, or the one that the directory `path` holds."""
    if not os.path.isdir(path):
        return path
    return next((path / name for name in _FILES if os.path.isfile(path / name)), path / _FILES[0])


def features_of(data: Data) -> dict[Key, str]:
    """The features that a recipe uses as state and actions. A state of several features has no name."""
    found: dict[Key, str] = {"actions": data.actions}
    if isinstance(data.state, str):
        found["state"] = data.state
    return found


def _form(file: Path, body: Any) -> tuple[str, dict[str, Any]]:
    """The file's kind, and its statistics by feature."""
    if isinstance(body, dict) and isinstance(body.get("norm_stats"), dict):
        return "openpi's norm_stats.json", body["norm_stats"]
    if isinstance(body, dict):
        named = {name for names in _NAMES.values() for name in names} & set(body)
        lerobot = any(
            isinstance(value, dict) and ("count" in value or "max" in value) for value in body.values()
        )
        if lerobot:
            return "LeRobot's stats.json", body
        if named:
            return "openpi's norm_stats.json without its wrapper `norm_stats`", body
    got = ", ".join(map(str, list(body)[:20])) if isinstance(body, dict) else type(body).__name__
    raise _invalid(
        file, f"it holds {got or 'nothing'}", "norm_stats with state and actions, or LeRobot's stats.json"
    )


def checked(file: Path, form: str, name: str, value: Any, mode: Normalization) -> DimensionStats:
    """The four statistics of one feature. Those that `mode` needs are checked.

    Raises: HarnessError "norm-stats-invalid" with the feature and the dimension.
    """
    if not isinstance(value, dict):
        raise _invalid(file, f"{form}: {name} is {type(value).__name__}", "mean, std, q01 and q99")
    vectors = {
        statistic: _vector(file, name, statistic, value.get(statistic), needed=statistic in _NEEDED[mode])
        for statistic in STATISTICS
    }
    lacking = [statistic for statistic in _NEEDED[mode] if not vectors[statistic]]
    if lacking:
        got = ", ".join(statistic for statistic in value if vectors.get(statistic)) or "none of them"
        what = f"{form}: {name} has no {' and no '.join(lacking)}, only {got}" + (
            "; its min and max are no quantiles" if "max" in value else ""
        )
        raise _invalid(file, what, f"{' and '.join(_NEEDED[mode])}, which {mode} normalization needs")
    width = len(vectors[_NEEDED[mode][0]])
    for statistic, vector in vectors.items():
        if vector and len(vector) != width:
            if statistic in _NEEDED[mode]:
                raise _invalid(
                    file,
                    f"{name}.{statistic} has {len(vector)} values, {_NEEDED[mode][0]} {width}",
                    "vectors of one length",
                )
            vectors[statistic] = []
    for d, (low, high) in enumerate(
        zip(vectors["q01"], vectors["q99"], strict=True) if mode == "quantile" else ()
    ):
        if low > high:
            raise _invalid(
                file,
                f"{name}[{d}]: q01 {low:g} is above q99 {high:g}",
                "q01 ≤ q99 in every dimension: the two are exchanged",
            )
    for d, std in enumerate(vectors["std"] if mode == "zscore" else ()):
        if std < 0:
            raise _invalid(file, f"{name}[{d}]: std is {std:g}", "std ≥ 0 in every dimension")
    return DimensionStats(**vectors)


def _vector(file: Path, name: str, statistic: str, value: Any, *, needed: bool) -> list[float]:
    """The numbers of one statistic.

    Empty if it is missing, or if it is not needed and not a vector of numbers.
    """
    if value is None:
        return []
    value = value if isinstance(value, list) else [value]
    wrong = next(
        (
            d
            for d, x in enumerate(value)
            if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x)
        ),
        None,
    )
    if wrong is None and len(value) <= _MOST_DIMENSIONS:
        return [float(x) for x in value]
    if not needed:
        return []
    if wrong is None:
        raise _invalid(file, f"{name}.{statistic} has {len(value):,} values", f"at most {_MOST_DIMENSIONS:,}")
    raise _invalid(
        file,
        f"{name}[{wrong}]: {statistic} is {value[wrong]!r:.50}",
        f"a finite number in every dimension of {statistic}",
    )


def _of_episodes(lines: Iterable[bytes]) -> dict[str, Any]:
    """Mean and standard deviation over all episodes of LeRobot's episodes_stats.jsonl.

    Quantiles of the whole cannot be computed from those of the episodes.

    Raises: ValueError.
    """
    sums: dict[str, list[Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line)
        features = row.get("stats") if isinstance(row, dict) else None
        if not isinstance(features, dict):
            raise ValueError(f"line {number} has no stats")
        for name, value in features.items():
            one = _moments(value)
            if one is not None:
                held = sums.setdefault(name, [0.0, np.zeros_like(one[1]), np.zeros_like(one[1])])
                if held[1].shape != one[1].shape:
                    raise ValueError(f"line {number}: {name} has another number of dimensions")
                held[0], held[1], held[2] = (
                    held[0] + one[0],
                    held[1] + one[0] * one[1],
                    held[2] + one[0] * (one[2] ** 2 + one[1] ** 2),
                )
    found = {}
    for name, (count, first, second) in sums.items():
        mean = first / count
        found[name] = {
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(second / count - mean**2, 0)).tolist(),
            "count": [count],
        }
    return found


def _moments(value: Any) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Count, mean and std of one feature in one episode.

    None if the values are not vectors of numbers, such as a camera's.
    """
    if not isinstance(value, dict):
        return None
    try:
        count, mean, std = (
            np.atleast_1d(np.asarray(value.get(key), np.float64)) for key in ("count", "mean", "std")
        )
    except (TypeError, ValueError):
        return None
    good = mean.ndim == std.ndim == 1 and mean.shape == std.shape and count.size == 1 and count[0] > 0
    return (
        (float(count[0]), mean, std)
        if good and np.isfinite(mean).all() and np.isfinite(std).all() and np.isfinite(count).all()
        else None
    )


def _invalid(file: Path, got: str, need: str) -> HarnessError:
    return HarnessError(
        "norm-stats-invalid",
        f"{file} holds no statistics that can be used here",
        got=got[:500],
        need=need,
        fix="name another file; openpi writes norm_stats.json with scripts/compute_norm_stats.py",
    )
