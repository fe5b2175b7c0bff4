"""What comes before a run: probe, plan, data, stats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.verbs.answers import answer, busy, chain_for, rundir
from harness.verbs.options import DatasetOption, DeviceOption, JsonOption, RecipeOption, RunOption, SetOption


def probe(run: RunOption = None, as_json: JsonOption = False) -> None:
    """What this machine has: GPUs (through NVML, without JAX), memory, disk, cores, container."""
    from harness.probe.machine import probe as read
    from harness.rundir import RunDir, cache_root, runs_root
    from harness.show.machine import machine_table

    machine = read([run or runs_root(), cache_root()])
    if run is not None:
        RunDir(run).write(machine)
    answer(machine, as_json, machine_table)


def plan(
    recipe: RecipeOption = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Plan for this card, which need not be here (for example rtx_a6000).")] = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """How this machine would carry out a recipe, in bytes that the compiler says; exit code 1 when it does not fit."""
    from harness.show.plan import plan_table

    chain = chain_for(run, recipe, sets, None)
    machine = chain.machine()
    dataset = chain.dataset() if chain.recipe.data.dataset == "sample" else None
    with busy("compiling the training step"):
        made = chain.plan(machine, dataset, gpu=gpu, device=device)
    answer(made, as_json, plan_table)
    raise typer.Exit(0 if made.chosen else 1)


def data(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    html: Annotated[bool, typer.Option("--html", help="Also write dataset.html, a look at the data: into --run, else into this directory.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a dataset is: format, episodes, frames, tasks, features, content hash. Every row is checked."""
    from harness.chain import write_dataset_page
    from harness.show.dataset import dataset_table

    chain = chain_for(run, recipe, sets, dataset)
    with busy("reading the dataset"):
        found = chain.dataset()
        page = write_dataset_page(chain, found) if html else None
    answer(found, as_json, dataset_table)
    if page is not None:
        print(page, file=sys.stderr if as_json else sys.stdout)


def stats(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    compare: Annotated[Path | None, typer.Option("--compare", help="Another norm_stats.json, or its directory: how far it is from ours.")] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Normalization statistics of state and actions, exact, on the CPU; no image is decoded."""
    from harness.show.dataset import comparison_table, stats_table

    chain = chain_for(run, recipe, sets, dataset)
    with busy("reading the dataset"):
        found = chain.stats(chain.dataset())
    if compare is None:
        answer(found, as_json, stats_table)
        return
    from harness.data.compare import compare as compare_with

    comparison = compare_with(found, compare)
    if run is not None:
        rundir(run).write(comparison)
    answer(comparison, as_json, comparison_table)
