"""The statistics that a run normalizes with: computed from its data, or given by the recipe and checked.

Given statistics are checked as `stats --compare` does: how far this data goes under them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from harness.artifacts import Comparison, Dataset, DegenerateDimension, DimensionStats, NormStats, Reach
from harness.artifacts.dataset import Given
from harness.data.compare import compare_statistics, first, width_without_padding
from harness.data.mapping import widths_of
from harness.data.norm_files import STATISTICS, Key, features_of, file_in, read_norm_stats
from harness.data.opened import Opened, open_each
from harness.data.rows import Block
from harness.data.space import Space, seen_blocks
from harness.data.stats import LARGE_NORMALIZED, compute, computed, trained_blocks
from harness.download.cache import fetch_file, is_remote
from harness.errors import HarnessError
from harness.received.consent import Named
from harness.received.denied import may_be_opened
from harness.received.files import read_received
from harness.received.text import word
from harness.recipe.norm_stats import BASE, FILE, location_of_statistics
from harness.recipe.schema import Recipe
from harness.units import MIB

_NAMED = Named("data.norm_stats of a received recipe", "--set data.norm_stats=FILE")
_MOST_BYTES = 256 * MIB
_COMPUTED = "--set data.norm_stats=null computes them from this data"


def statistics(recipe: Recipe, dataset: Dataset) -> NormStats:
    """The statistics by which the recipe normalizes.

    Raises: HarnessError of `compute` and of `given_file`; "norm-stats-invalid",
    "norm-stats-other-dimensions", "stats-degenerate".
    """
    if recipe.data.norm_stats is None:
        return compute(recipe, dataset)
    path = given_file(recipe)
    # What is odd in the data's own statistics does not matter: they are not used.
    lenient = recipe.data.model_copy(update={"degenerate_dimensions": "warn"})
    opened = open_each(recipe, dataset)
    ours = computed(recipe.model_copy(update={"data": lenient}), opened)
    theirs = _theirs(recipe, path, ours)
    mode, names = recipe.data.normalization, features_of(recipe.data)
    compared = compare_statistics(ours, path, mode=mode, names=names, blocks=_seen(opened))
    findings = [_finding(each) for each in _far(compared)]
    if findings and recipe.data.degenerate_dimensions == "error":
        raise HarnessError(
            "stats-degenerate",
            f"{len(findings)} dimensions go far beyond the statistics in {path}",
            got="; ".join(f"{f.key}[{f.dimension}] {f.problem}" for f in findings),
            need=f"values of this data within -{LARGE_NORMALIZED:g} to {LARGE_NORMALIZED:g} under them",
            fix=f"{_COMPUTED}, or --set data.degenerate_dimensions=warn to train on them as they are",
        )
    given = Given(source=str(location_of_statistics(recipe)), form=compared.form, sha256=file_sha256(path))
    return ours.model_copy(update={"norm_stats": theirs, "findings": findings, "given": given})


def seen(recipe: Recipe, dataset: Dataset) -> Iterator[Block] | None:
    """All rows that are trained on as the model sees them, to be counted under other statistics.

    None for a mixture of different numbers of dimensions, whose rows are not counted together.
    """
    return _seen(open_each(recipe, dataset))


def _seen(opened: list[Opened]) -> Iterator[Block] | None:
    widths = {tuple(widths_of(one.recipe.data, one.data.features).values()) for one in opened}
    if len(widths) > 1:
        return None
    return itertools.chain.from_iterable(
        seen_blocks(trained_blocks(opened, n)(), Space.of(one.recipe.data), one.recipe.model.action_horizon)
        for n, one in enumerate(opened)
    )


def given_file(recipe: Recipe) -> Path:
    """The file of the given statistics on this machine. An asset of remote weights is downloaded first.

    Raises: HarnessError "norm-stats-not-found", "norm-stats-need-weights", and those of a download.
    """
    location = location_of_statistics(recipe)
    assert location is not None
    if recipe.data.norm_stats == BASE and recipe.weights.source is None:
        raise HarnessError(
            "norm-stats-need-weights",
            "data.norm_stats is base, and the recipe starts from no checkpoint",
            got="weights.source=null",
            need="weights.source: the params directory of the checkpoint whose statistics are meant",
            fix=f"{_COMPUTED}, or --set data.norm_stats=FILE",
        )
    if is_remote(location):
        return fetch_file(location, named=_NAMED).path
    path = Path(location)
    if recipe.data.norm_stats == BASE and not path.is_file():
        assets = path.parent.parent
        there = sorted(each.parent.name for each in assets.glob(f"*/{FILE}")) if assets.is_dir() else []
        raise HarnessError(
            "norm-stats-not-found",
            f"the base checkpoint holds no statistics of {recipe.data.asset_id!r}",
            got=", ".join(there[:20]) or f"no assets in {assets}",
            need=str(path),
            fix=(
                f"--set {word(f'data.asset_id={there[0]}')}"
                if there
                else f"--set data.norm_stats=FILE, or {_COMPUTED}"
            ),
        )
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of the file of statistics, or of the one that the directory `path` holds.

    Raises: HarnessError "norm-stats-not-found".
    """
    file = file_in(path)
    try:
        real = file.resolve()
        return hashlib.sha256(read_received(real, real.parent, _MOST_BYTES)).hexdigest()
    except (OSError, RuntimeError) as error:
        raise HarnessError(
            "norm-stats-not-found",
            f"cannot read the statistics that data.norm_stats names: {file}",
            got=getattr(error, "strerror", None) or str(error),
            need="a norm_stats.json, or the directory that holds it",
            fix=may_be_opened(file)
            if isinstance(error, PermissionError)
            else f"--set data.norm_stats=FILE, or {_COMPUTED}",
        ) from error


def _theirs(recipe: Recipe, path: Path, ours: NormStats) -> dict[Key, DimensionStats]:
    """The given statistics without zero padding, and the extremes of this data beside them.

    Raises: HarnessError "norm-stats-invalid", "norm-stats-other-dimensions".
    """
    keys: tuple[Key, ...] = tuple(ours.norm_stats)
    names = features_of(recipe.data)
    file, form, stats = read_norm_stats(path, recipe.data.normalization, keys=keys, names=names)
    found: dict[Key, DimensionStats] = {}
    for key, own in ours.norm_stats.items():
        lacking = [name for name in STATISTICS if not getattr(stats[key], name)]
        if lacking:
            raise HarnessError(
                "norm-stats-invalid",
                f"{file} lacks statistics that a checkpoint keeps beside its weights",
                got=f"{form}: {key} without {', '.join(lacking)}",
                need=", ".join(STATISTICS),
                fix=f"--set data.norm_stats=FILE with a file that has them, or {_COMPUTED}",
            )
        dimensions = len(own.mean)
        width = width_without_padding(stats[key], dimensions)
        if width != dimensions:
            raise HarnessError(
                "norm-stats-other-dimensions",
                f"{file} holds statistics of another robot: its {key} have another number of dimensions",
                got=width,
                need=f"{dimensions}, as {names.get(key, key)!r} of the data",
                fix=f"--set data.norm_stats=FILE with this robot's, or {_COMPUTED}",
            )
        extremes = {"min": own.min, "max": own.max}
        found[key] = first(stats[key], dimensions).model_copy(update=extremes)
    return found


def _far(compared: Comparison) -> list[Reach]:
    return [one for one in compared.reach if max(abs(one.low), abs(one.high)) > LARGE_NORMALIZED]


def _finding(one: Reach) -> DegenerateDimension:
    outside = "" if one.outside is None else f"; {100 * one.outside:.2f} % of the frames lie beyond -1 to 1"
    problem = f"reaches {one.low:.4g} to {one.high:.4g} under the given statistics{outside}"
    return DegenerateDimension(
        key=one.key,
        dimension=one.dimension,
        problem=problem,
        largest_normalized=max(abs(one.low), abs(one.high)),
        fix=_COMPUTED,
    )
