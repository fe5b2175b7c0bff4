"""What a dataset is: data."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from harness.received.consent import hear
from harness.received.text import one_line
from harness.show.progress import busy
from harness.verbs.answers import answer, with_dataset
from harness.verbs.options import (
    DatasetOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    RecipeOption,
    RunOption,
    SetOption,
)


def data(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    html: Annotated[
        bool,
        typer.Option(
            "--html",
            help=(
                "Also write dataset.html (a page for each dataset of a mixture), a look at the data as the"
                " model sees it: into --run, else into this directory."
            ),
        ),
    ] = False,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a dataset is: format, episodes, frames, tasks, features, content hash. Every row is checked."""
    from harness.flow.chain import chain_for
    from harness.flow.pages import write_dataset_pages
    from harness.show.dataset import dataset_table

    hear(fetch=fetch, offline=offline)
    chain = chain_for(run, recipe, with_dataset(sets, dataset))
    with busy("reading the dataset"):
        found = chain.dataset()
        pages = write_dataset_pages(chain, found) if html else []
    answer(found, as_json, dataset_table)
    for page in pages:
        print(one_line(str(page)), file=sys.stderr if as_json else sys.stdout)
