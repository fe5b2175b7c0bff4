"""A checkpoint for another program, or its adapters alone: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.received.consent import grant, hear
from harness.received.text import one_line
from harness.show.progress import busy, spinner
from harness.verbs.answers import with_dataset
from harness.verbs.options import (
    BaseOption,
    DatasetOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    OwnRecipeOption,
    SetOption,
)
from harness.verbs.started import started

if TYPE_CHECKING:
    from harness.checkpoint.locate import Located
    from harness.predict.deliver import Wish
    from harness.recipe.schema import Recipe


StepArgument = Annotated[
    str, typer.Argument(help="A step of a LoRA run (or the run: its newest whole step).")
]
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to", help="Which program reads it: openpi-jax, openpi-pytorch or lerobot. Default: openpi in JAX."
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32 or bfloat16. Default: float32 for PyTorch, as stored for openpi-jax."
    ),
]
CheckOption = Annotated[
    int | None,
    typer.Option(
        "--check", help="Compare the actions of source and written file on so many frames of the dataset."
    ),
]
AdapterOption = Annotated[
    list[Path] | None,
    typer.Option("--adapter", help="Adapters to add to STEP, ours or PEFT's (may be given again)."),
]
AdaptersOption = Annotated[
    bool, typer.Option("--adapters", help="Write the adapters alone: ours, or with --to lerobot PEFT's.")
]


def export(
    step: StepArgument,
    destination: Annotated[Path, typer.Argument(help="New directory for what is written.")],
    to: ToOption = None,
    dtype: DtypeOption = None,
    check: CheckOption = None,
    adapter: AdapterOption = None,
    adapters: AdaptersOption = False,
    dataset: DatasetOption = None,
    base: BaseOption = None,
    recipe: OwnRecipeOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge LoRA adapters, and write the weights for openpi in JAX or PyTorch, or for LeRobot.

    What is written gives the same actions without adapters; --check proves it before it is called done.
    """
    import json

    from harness.checkpoint.export import export_openpi
    from harness.checkpoint.locate import locate, recipe_of
    from harness.checkpoint.source import find_params
    from harness.predict.deliver import Wish
    from harness.units import format_bytes

    hear(fetch=fetch, offline=offline)
    grant(base)
    located = locate(step)
    overrides = with_dataset(sets, dataset)
    own = recipe_of(_with_recipe(located, adapter), recipe, overrides)
    asked = to is not None or dtype is not None or check is not None or adapter or adapters
    if asked or find_params(located.path).is_file():
        wish = Wish(to or "openpi-jax", dtype, check, base, tuple(adapter or ()), adapters)
        _deliver(located, own, destination, wish, as_json=as_json)
        return
    with busy("merging"):
        merged = export_openpi(
            located.path, destination, model=own.model, base=base, recipe=own.model_dump(mode="json")
        )
    size = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    if as_json:
        print(
            json.dumps(
                {"path": str(destination), "source": str(located.path), "merged": merged, "bytes": size},
                indent=2,
            )
        )
    else:
        print(
            one_line(f"{destination}: {located.path} with {len(merged)} weights merged, {format_bytes(size)}")
        )


def _deliver(
    located: Located,
    recipe: Recipe,
    destination: Path,
    wish: Wish,
    *,
    as_json: bool,
) -> None:
    import json

    from harness.predict.deliver import deliver
    from harness.units import format_bytes

    with spinner("reading") as say:
        tenths = -1

        def progress(done: int, total: int) -> None:
            nonlocal tenths
            if (now := 10 * done // max(total, 1)) > tenths:
                tenths = now
                say(f"writing: {format_bytes(done)} of {format_bytes(total)}")

        if wish.frames is not None:
            started(None, lambda on: say(f"actions are compared on {on.name}"))
        made = deliver(located, recipe, destination, wish, say, progress)
    size = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    if as_json:
        answer: dict[str, Any] = {key: value for key, value in made.items() if key != "recipe"}
        print(json.dumps({"path": str(destination), "bytes": size, **answer}, indent=2))
        return
    print(
        one_line(
            f"{destination}: {located.path} for {wish.target},"
            f" {'adapters alone' if wish.alone else _merged(made)}, {format_bytes(size)}"
        )
    )
    if made.get("check") is not None:
        print(
            f"actions on {made['check']['frames']} frames: largest difference {made['check']['largest']:.3g},"
            f" allowed {made['check']['tolerance']:g}"
        )


def _merged(made: dict[str, Any]) -> str:
    return f"{len(made['merged'])} weights merged"


def _with_recipe(located: Located, adapters: list[Path] | None) -> Located:
    """Where the recipe is recorded: beside the first adapters of ours, if there are some."""
    from harness.checkpoint.locate import Located, recorded
    from harness.run.steps import RECORD

    for directory in adapters or ():
        if recorded(directory, RECORD) is not None:
            return Located(directory, None, None)
    return located
