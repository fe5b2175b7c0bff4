"""The HTML pages that are written from the files of a run."""

from __future__ import annotations

from pathlib import Path

from harness.artifacts import Dataset
from harness.flow.chain import Chain
from harness.run.directory import DATASET_PAGE, REPORT, RunDir, write_atomic


def write_dataset_page(chain: Chain, dataset: Dataset) -> Path:
    """The path of dataset.html, in the run's directory or else in the working directory."""
    from harness.data.lerobot import open_data
    from harness.data.prompts import most_tokens
    from harness.data.tokenizer import load_tokenizer
    from harness.data.transforms import normalize
    from harness.report.dataset_page import render

    data, stats = chain.recipe.data, chain.stats(dataset)
    # If the longest prompt is unknown, the tokenizer is not on this machine.
    tokenizer = load_tokenizer(data.tokenizer) if dataset.longest_prompt_tokens is not None else None
    frames = open_data(data, dataset.path)
    width = frames.columns.state.shape[-1]
    tokens = (
        {task: most_tokens(chain.recipe, tokenizer, task, width) for task in dataset.tasks}
        if tokenizer is not None
        else {}
    )
    page = render(
        dataset,
        stats,
        frames,
        tokens,
        lambda key, values: normalize(
            values, stats.norm_stats["state" if key == "state" else "actions"], data.normalization
        ),
        data.normalization,
    )
    path = (chain.run.path if chain.run else Path()) / DATASET_PAGE
    write_atomic(path, page)
    return path


def write_report(run: RunDir) -> Path:
    """The path of report.html, written from the files of the run."""
    from harness.report.page import render

    path = run.path / REPORT
    write_atomic(path, render(run))
    return path
