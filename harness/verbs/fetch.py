"""Brings what a run needs into the cache, so that the run itself needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.show.progress import spinner
from harness.verbs.answers import answer, rundir, with_dataset
from harness.verbs.options import DatasetOption, JsonOption, RecipeOption, RunOption, SetOption


def fetch(
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Brings a recipe's dataset, tokenizer and weights into the cache; afterwards its training needs no
    network.
    """
    from harness.artifacts import Fetched
    from harness.flow.chain import chain_for
    from harness.show.fetched import fetched_view

    asked = chain_for(None, recipe, with_dataset(sets, dataset)).recipe
    with spinner("fetching the dataset") as say:
        parts = [_dataset(data) for data in asked.data.parts()]
        say("fetching the tokenizer")
        parts.append(_tokenizer(asked))
        if asked.weights.source is not None:
            say("fetching the weights")
            parts.append(_weights(str(asked.weights.source), say))
        if asked.data.norm_stats is not None:
            say("fetching the statistics")
            parts.append(_statistics(asked))
    found = Fetched(recipe=asked.name, parts=parts)
    if run is not None:
        rundir(run).write(found)
    answer(found, as_json, fetched_view)


def _dataset(data: Any) -> Any:
    from harness.data.fetch import resolve

    return _part("dataset", data.dataset, resolve(data).path)


def _tokenizer(recipe: Any) -> Any:
    from harness.data.tokenizer import tokenizer_path

    return _part("tokenizer", recipe.data.tokenizer, tokenizer_path(recipe.data.tokenizer))


def _statistics(recipe: Any) -> Any:
    from harness.data.given import given_file
    from harness.recipe.norm_stats import location_of_statistics

    return _part("statistics", location_of_statistics(recipe) or "", given_file(recipe))


def _weights(source: str, say: Any) -> Any:
    from harness.download.cache import fetch_tree, is_remote
    from harness.units import format_bytes

    def progress(done: int, total: int) -> None:
        say(f"fetching the weights: {100 * done // max(total, 1)} % of {format_bytes(total)}")

    return _part(
        "weights", source, fetch_tree(source, progress=progress).path if is_remote(source) else Path(source)
    )


def _part(what: Any, source: str, path: Path) -> Any:
    """A part that lies at `path`.

    Raises: HarnessError "not-here" for a local path without anything; UnsafeFile "tree-too-large".
    """
    from harness.artifacts import Part
    from harness.received.files import walk

    if not path.exists():
        need = "a path that exists (in a container: one that is mounted), or an address"
        raise HarnessError(
            "not-here",
            f"there is no {what} at {source}",
            got=str(path),
            need=need,
            fix=f"--set {_KEYS[what]}=PATH",
        )
    files = [path] if path.is_file() else walk(path)
    return Part(what=what, source=source, path=str(path), bytes=sum(each.stat().st_size for each in files))


_KEYS = {
    "dataset": "data.dataset",
    "tokenizer": "data.tokenizer",
    "weights": "weights.source",
    "statistics": "data.norm_stats",
}
