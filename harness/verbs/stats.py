"""Normalization statistics: stats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.received.consent import hear
from harness.show.progress import busy
from harness.verbs.answers import answer, rundir, with_dataset
from harness.verbs.options import (
    DatasetOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    RecipeOption,
    RunOption,
    SetOption,
)


def stats(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            help=(
                "Compare with this norm_stats.json or LeRobot stats.json, or with the one in this directory."
            ),
        ),
    ] = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Normalization statistics of state and actions, exact, on the CPU; no image is decoded."""
    from harness.flow.chain import chain_for
    from harness.show.dataset import comparison_table, stats_table

    hear(fetch=fetch, offline=offline)
    chain = chain_for(run, recipe, with_dataset(sets, dataset))
    with busy("reading the dataset"):
        described = chain.dataset()
        found = chain.stats(described)
    if compare is None:
        answer(found, as_json, stats_table)
        return
    from harness.data.compare import compare_statistics
    from harness.data.given import seen
    from harness.data.norm_files import features_of

    data = chain.recipe.data
    blocks = seen(chain.recipe, described)
    comparison = compare_statistics(
        found, compare, mode=data.normalization, names=features_of(data), blocks=blocks
    )
    if run is not None:
        rundir(run).write(comparison)
    answer(comparison, as_json, comparison_table)
