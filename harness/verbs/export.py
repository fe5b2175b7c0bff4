"""Adapters merged into a full checkpoint: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.received.consent import grant, hear
from harness.received.text import one_line
from harness.show.progress import busy
from harness.verbs.options import FetchOption, JsonOption, OfflineOption, OwnRecipeOption, SetOption


def export(
    step: Annotated[str, typer.Argument(help="A step of a LoRA run (or the run: its newest whole step).")],
    destination: Annotated[Path, typer.Argument(help="New directory for the full openpi checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Where the base weights are now, for a step that holds only trained parameters."
        ),
    ] = None,
    recipe: OwnRecipeOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge LoRA adapters into a full openpi checkpoint, which gives the same actions without them."""
    import json

    from harness.checkpoint.export import export_openpi
    from harness.checkpoint.locate import locate, recipe_of
    from harness.units import format_bytes

    hear(fetch=fetch, offline=offline)
    grant(base)
    located = locate(step)
    own = recipe_of(located, recipe, sets)
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
