"""The HTML pages that are written from the files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifacts import Dataset, NormStats
from harness.flow.chain import Chain
from harness.recipe.schema import Data, Recipe
from harness.run.directory import DATASET_PAGE, REPORT, RunDir, write_atomic

if TYPE_CHECKING:
    from harness.data.lerobot import LeRobotDataset


def write_dataset_pages(chain: Chain, dataset: Dataset) -> list[Path]:
    """The paths of the pages, in the run's directory or else in the working directory.

    It is dataset.html, or of a mixture dataset-0.html and so on, numbered as in data.datasets.
    """
    stats, written = chain.stats(dataset), []
    for n, (part, one) in enumerate(zip(chain.recipe.parts(), dataset.parts, strict=True)):
        page = _dataset_page(part, one, stats, alone=not dataset.members)
        name = Path(DATASET_PAGE)
        own = name if not dataset.members else name.with_stem(f"{name.stem}-{n}")
        path = (chain.run.path if chain.run else Path()) / own
        write_atomic(path, page)
        written.append(path)
    return written


def _dataset_page(recipe: Recipe, dataset: Dataset, stats: NormStats, *, alone: bool) -> str:
    """The page of one dataset, normalized with `stats`, which are the mixture's if it is not `alone`."""
    from harness.data.batch import own_stats
    from harness.data.lerobot import open_data
    from harness.data.mapping import widths_of
    from harness.data.prompts import most_tokens
    from harness.data.space import Space
    from harness.data.tokenizer import load_tokenizer
    from harness.data.transforms import normalize
    from harness.report.dataset_page import render

    data, horizon = recipe.data, recipe.model.action_horizon
    # If the longest prompt is unknown, the tokenizer is not on this machine.
    tokenizer = load_tokenizer(data.tokenizer) if dataset.longest_prompt_tokens is not None else None
    frames = open_data(data, dataset.path)
    width = widths_of(data, frames.features)["state"]
    tokens = (
        {task: most_tokens(recipe, tokenizer, task, width) for task in dataset.tasks}
        if tokenizer is not None
        else {}
    )
    own = stats.norm_stats if alone else own_stats(stats.norm_stats, data, frames.features)
    return render(
        dataset,
        stats.model_copy(update={"norm_stats": own}),
        frames,
        tokens,
        lambda key, values: normalize(
            values, own["state" if key == "state" else "actions"], data.normalization
        ),
        data.normalization,
        seen=Space.of(data).tiled(frames.columns, horizon),
        names={"actions": frames.names.get(data.actions, []), "state": _state_names(frames, data)},
        told=_told(data, horizon),
    )


def _state_names(frames: LeRobotDataset, data: Data) -> list[str]:
    """The names of the state's dimensions, if every feature of it has them."""
    parts = [frames.names.get(name, []) for name in data.state_features]
    return [name for part in parts for name in part] if all(parts) else []


def _told(data: Data, horizon: int) -> dict[str, str]:
    """What the model sees instead of the recorded state and actions, by key. A sentence each."""
    told = {}
    adapted = f"Joints and grippers are turned as data.adapt ({data.adapt}) says." if data.adapt else ""
    if adapted:
        told["state"] = told["actions"] = adapted
    if data.relative:
        dimensions = ", ".join(data.relative)
        told["actions"] = (
            f"Dimensions {dimensions} are differences to the state of their chunk's first frame. The lines"
            f" are chunks of {horizon}, one after the other; each begins anew. {adapted}"
        ).strip()
    return told


def write_report(run: RunDir) -> Path:
    """The path of report.html, written from the files of the run."""
    from harness.report.page import render

    path = run.path / REPORT
    write_atomic(path, render(run))
    return path
