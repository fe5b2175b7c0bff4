"""What comes before a run: probe, plan, data, stats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.download.consent import hear
from harness.verbs.answers import answer, busy, chain_for, rundir, spinner
from harness.verbs.options import DatasetOption, DeviceOption, FetchOption, JsonOption, OfflineOption, RecipeOption, RunOption, SetOption
from harness.verbs.planning import Backend, answer_for_openpi, gib_bytes, nowhere, wait_for_cards, write_matrix


def probe(run: RunOption = None, as_json: JsonOption = False) -> None:
    """What this machine has: GPUs (through NVML, without JAX), memory, disk, cores, container."""
    from harness.probe.machine import probe as read
    from harness.run.directory import RunDir, cache_root, runs_root
    from harness.show.machine import machine_table

    machine = read([run or runs_root(), cache_root()])
    if run is not None:
        RunDir(run).write(machine)
    answer(machine, as_json, machine_table)


def plan(
    recipe: RecipeOption = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Plan for this card, which need not be here: rtx_a6000, or a40:8 for eight.")] = None,
    vram_gib: Annotated[float | None, typer.Option("--vram-gib", min=0.25, help="GiB of the card, instead of what NVML or the table says.")] = None,
    host_ram_gib: Annotated[float | None, typer.Option("--host-ram-gib", min=0.25, help="GiB of host memory, instead of what is available here.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only plans that change nothing of the recipe; exit code 1 when none fits.")] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="Ask the compiler even where the atlas knows.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until others leave the card, as far as an idle one would do better.")] = False,
    backend: Annotated[
        Backend | None, typer.Option("--backend", help="ours; or openpi: whether upstream's own step fits, as it is configured. Default: the run's, else ours.")
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="What every card can train, from the atlas: a Markdown table, and a picture beside it.")] = False,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """How this machine would carry out a recipe, in bytes that the compiler says; exit code 1 when it does not fit."""
    from harness.artifacts import Dataset
    from harness.flow.chain import backend_of
    from harness.show.plan import plan_view

    if matrix:
        write_matrix(run)
        return
    asked = {"gpu": gpu, "device": device, "vram_bytes": gib_bytes(vram_gib), "host_ram_bytes": gib_bytes(host_ram_gib), "exact": exact, "recompile": compile_}
    if (backend or backend_of(rundir(run) if run is not None else None)) == Backend.openpi:
        answer_for_openpi(recipe, sets, asked, run, as_json)
        return
    chain = chain_for(run, recipe, sets, None, "ours")
    dataset = rundir(run).read(Dataset) if run is not None else None
    with spinner("planning") as say:
        # For a card that is not here this machine says nothing.
        made = wait_for_cards(chain, dataset, asked, say) if wait else chain.plan(chain.machine() if gpu is None else nowhere(), dataset, **asked, say=say)
    answer(made, as_json, plan_view)
    raise typer.Exit(0 if made.chosen else 1)


def data(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    html: Annotated[bool, typer.Option("--html", help="Also write dataset.html, a look at the data: into --run, else into this directory.")] = False,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a dataset is: format, episodes, frames, tasks, features, content hash. Every row is checked."""
    from harness.flow.chain import write_dataset_page
    from harness.show.dataset import dataset_table

    hear(fetch=fetch, offline=offline)
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
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Another norm_stats.json or LeRobot's stats.json, or its directory: how far it is from ours.")
    ] = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Normalization statistics of state and actions, exact, on the CPU; no image is decoded."""
    from harness.show.dataset import comparison_table, stats_table

    hear(fetch=fetch, offline=offline)
    chain = chain_for(run, recipe, sets, dataset)
    with busy("reading the dataset"):
        described = chain.dataset()
        found = chain.stats(described)
    if compare is None:
        answer(found, as_json, stats_table)
        return
    from harness.data.compare import compare as compare_with
    from harness.data.lerobot import open_dataset
    from harness.data.norm_files import features_of

    data = chain.recipe.data
    blocks = open_dataset(described.path, state=data.state, actions=data.actions).blocks()
    comparison = compare_with(found, compare, mode=data.normalization, names=features_of(data), blocks=blocks)
    if run is not None:
        rundir(run).write(comparison)
    answer(comparison, as_json, comparison_table)
