"""How a machine carries a recipe out: plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import HarnessError
from harness.flow.wait import nowhere, wait_for_cards
from harness.show.progress import spinner
from harness.verbs.answers import answer, chain_for, rundir
from harness.verbs.options import (
    Backend,
    DeviceOption,
    JsonOption,
    RecipeOption,
    RunOption,
    SetOption,
    gib_bytes,
)


def answer_for_openpi(
    recipe: str | None, sets: list[str] | None, asked: dict[str, Any], run: Path | None, as_json: bool
) -> None:
    """Whether upstream's own step fits, as configured: exit code 0 or 1.

    Without --recipe it is the published one.

    Raises: HarnessError of `plan.upstream_plan`.
    """
    from harness.flow.find import recipe_of
    from harness.openpi import plan as upstream_plan
    from harness.probe.machine import probe
    from harness.received.files import there
    from harness.recipe.load import load_recipe
    from harness.run.directory import RECIPE, RunDir, cache_root, sha256_json
    from harness.show.plan import plan_view

    if asked["recompile"] or asked["device"] == "cpu":
        what = (
            "upstream's step is not compiled here: its versions are others than ours"
            if asked["recompile"]
            else "openpi's trainer is planned for GPUs"
        )
        fix = "leave --compile out" if asked["recompile"] else "leave --device cpu out, or add --gpu NAME"
        raise HarnessError(
            "upstream-cannot", what, need="the table of compiled answers that is shipped", fix=fix
        )
    fsdp, overrides = upstream_plan.options(sets or [])
    if run is not None and recipe is None and there(run / RECIPE):
        own = recipe_of(RunDir(run), None, overrides, own_first=True)
    else:
        own = load_recipe(recipe or upstream_plan.PUBLISHED, overrides)
    where = {name: asked[name] for name in ("gpu", "vram_bytes", "host_ram_bytes")}
    machine = None if asked["gpu"] else probe([run or cache_root(), cache_root()])
    place = upstream_plan.place_of(own, machine, **where, fsdp=fsdp)
    made = upstream_plan.plan_upstream(own, place, fsdp, inputs=sha256_json([own, asked, fsdp]))
    if run is not None:
        RunDir(run).write(made)
    answer(made, as_json, plan_view)
    raise typer.Exit(0 if made.chosen else 1)


def write_matrix(run: Path | None) -> None:
    """Prints the table as Markdown, and writes the picture into the run, else into this directory.

    Raises: HarnessError "atlas-stale".
    """
    from harness.plan.cards import CARDS
    from harness.plan.matrix import cells, words
    from harness.show.cards_picture import picture
    from harness.show.matrix import markdown
    from harness.units import format_bytes

    table = cells()
    print(markdown(table, words, lambda card: format_bytes(CARDS[card].memory_bytes)))
    path = (run or Path()) / "hardware.png"
    picture(table, path)
    print(path, file=sys.stderr)


def plan(
    recipe: RecipeOption = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", help="Plan for this card, which need not be here: rtx_a6000, or a40:8 for eight."
        ),
    ] = None,
    vram_gib: Annotated[
        float | None,
        typer.Option("--vram-gib", min=0.25, help="GiB of the card, instead of what NVML or the table says."),
    ] = None,
    host_ram_gib: Annotated[
        float | None,
        typer.Option(
            "--host-ram-gib", min=0.25, help="GiB of host memory, instead of what is available here."
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Only plans that change nothing of the recipe; exit code 1 when none fits."
        ),
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Ask the compiler even where the atlas knows.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Wait until others leave the card, as far as an idle one would do better."
        ),
    ] = False,
    backend: Annotated[
        Backend | None,
        typer.Option(
            "--backend",
            help=(
                "ours; or openpi: whether upstream's own step fits, as it is configured. Default: the run's,"
                " else ours."
            ),
        ),
    ] = None,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix",
            help="What every card can train, from the atlas: a Markdown table, and a picture beside it.",
        ),
    ] = False,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """How this machine would carry out a recipe, in bytes that the compiler says; exit code 1 when it does
    not fit.
    """
    from harness.artifacts import Dataset
    from harness.flow.find import backend_of
    from harness.show.plan import plan_view

    if matrix:
        write_matrix(run)
        return
    asked = {
        "gpu": gpu,
        "device": device,
        "vram_bytes": gib_bytes(vram_gib),
        "host_ram_bytes": gib_bytes(host_ram_gib),
        "exact": exact,
        "recompile": compile_,
    }
    if (backend or backend_of(rundir(run) if run is not None else None)) == Backend.openpi:
        answer_for_openpi(recipe, sets, asked, run, as_json)
        return
    chain = chain_for(run, recipe, sets, None, "ours")
    dataset = rundir(run).read(Dataset) if run is not None else None
    with spinner("planning") as say:
        # For a card that is not here this machine says nothing.
        made = (
            wait_for_cards(chain, dataset, asked, say)
            if wait
            else chain.plan(chain.machine() if gpu is None else nowhere(), dataset, **asked, say=say)
        )
    answer(made, as_json, plan_view)
    raise typer.Exit(0 if made.chosen else 1)
