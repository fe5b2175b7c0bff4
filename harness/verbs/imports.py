"""What others' command lines mean: import openpi."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.errors import HarnessError
from harness.verbs.answers import answer, rundir
from harness.verbs.options import JsonOption, RunOption, gib_bytes

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="What another trainer's command line would really do.",
    rich_markup_mode=None,
)


@app.callback()
def _imports() -> None:
    """What another trainer's command line would really do."""


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def openpi(
    context: typer.Context,
    config_name: Annotated[
        str | None,
        typer.Argument(
            help=(
                "openpi's configuration (pi05_libero), its own options behind it; or a whole line in quotes,"
                " LeRobot's too."
            )
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", help="Say whether it fits this card, which need not be here: rtx_a6000, or a100_80:8."
        ),
    ] = None,
    vram_gib: Annotated[
        float | None, typer.Option("--vram-gib", min=0.25, help="Say whether it fits a card of X GiB.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="New file for our recipe that does the same, or what was meant."),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            "--job", help="New file from which harness/openpi/entry.py starts openpi to do the same."
        ),
    ] = None,
    names: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print the names of openpi's configurations and what each trains, and do nothing else.",
        ),
    ] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an openpi command line would train, and in how many bytes.

    Exit code 1 when it fails, does not fit, or is not what it looks like.
    """
    from harness.openpi.imported import explain
    from harness.show.openpi import openpi_view

    if names:
        _list()
        return
    words = [*([] if config_name is None else [config_name]), *context.args]
    found = explain(words, _place(_shards(words), gpu, gib_bytes(vram_gib)))
    if recipe is not None:
        _write(found, recipe, "recipe")
    if job is not None:
        _write(found, job, "job")
    if run is not None:
        rundir(run).write(found)
    answer(found, as_json, openpi_view)
    raise typer.Exit(1 if any(finding.severity == "error" for finding in found.findings) else 0)


def _list() -> None:
    """Prints every configuration of openpi with its model, one a line."""
    from harness.openpi import configs as openpi_configs

    for name in openpi_configs.names():
        print(f"{name:40} {openpi_configs.FAMILIES[openpi_configs.find(name).family]}")


def _shards(words: list[str]) -> int:
    """Over how many devices the line shards the model; 1 where the trainer is not openpi's."""
    from harness.openpi.another import is_another
    from harness.openpi.options import read_line
    from harness.openpi.trainer_line import whose

    line = whose(words)
    if line.trainer == "lerobot" or is_another(line):
        return 1
    return int(read_line(line).effective["fsdp-devices"])


def _place(fsdp: int, gpu: str | None, vram_bytes: int | None) -> Any:
    """The card named, or this machine's; None where there is neither."""
    from harness.openpi.plan import PUBLISHED, place_of
    from harness.probe.machine import probe
    from harness.recipe.load import load_recipe
    from harness.run.directory import cache_root

    machine = None if gpu else probe([cache_root()])
    try:
        return place_of(
            load_recipe(PUBLISHED), machine, gpu=gpu, vram_bytes=vram_bytes, host_ram_bytes=None, fsdp=fsdp
        )
    except HarnessError as error:
        if error.code != "no-gpu":
            raise
        return None


def _write(found: Any, path: Path, what: Literal["recipe", "job"]) -> None:
    import json
    import os

    from harness.openpi.job import job_of
    from harness.received.text import word
    from harness.recipe.load import recipe_from, to_yaml
    from harness.run.directory import write_atomic

    if found.recipe is None:
        who = f"openpi {found.config}" if found.config else "another trainer's command"
        who = "LeRobot's command" if found.trainer == "lerobot" else who
        raise HarnessError(
            "recipe-inexpressible",
            f"no recipe of ours does what {who} does; nothing was written",
            got=found.unknown.get("recipe"),
            need="a command of π0.5 on LIBERO's features",
            fix=f"leave --{what} out; or copy pi05_libero.yaml and map your features in data",
        )
    # A link that leads nowhere is there too.
    if os.path.lexists(path):
        raise HarnessError(
            "file-exists",
            f"{path} is there already; nothing was overwritten",
            need="a new file",
            fix=f"--{what} {word(path.with_name(f'{path.stem}-2{path.suffix}'))}",
        )
    recipe = recipe_from(found.recipe, where="the imported recipe")
    if what == "recipe":
        write_atomic(path, to_yaml(recipe))
    else:
        write_atomic(path, json.dumps(job_of(recipe, found.effective, path.stem), indent=1) + "\n")
