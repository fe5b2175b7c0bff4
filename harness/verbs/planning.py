"""What `plan` does beside planning: it waits for a busy card, asks for upstream's own step, and writes the table of cards."""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from harness.errors import HarnessError
from harness.verbs.answers import answer

_POLL_S = 5.0
# A PiB; no machine has it, and beyond it a float is no count of bytes.
_MOST_GIB = 2**20


class Backend(enum.StrEnum):
    """Whose trainer it is."""

    ours = "ours"
    openpi = "openpi"


def gib_bytes(gib: float | None) -> int | None:
    """Bytes of the GiB that were given, where they were.

    Raises: HarnessError "memory-invalid" for what is no amount of memory.
    """
    if gib is None:
        return None
    if not gib <= _MOST_GIB:
        raise HarnessError("memory-invalid", f"{gib} GiB is no amount of memory", got=gib, need=f"at most {_MOST_GIB:,} GiB", fix="--vram-gib 24")
    return int(gib * 2**30)


def nowhere() -> Any:
    """A machine of which nothing is known."""
    from harness.artifacts import Host, Machine

    return Machine(host=Host())


def wait_for_cards(chain: Any, dataset: Any, asked: dict[str, Any], say: Callable[[str], None]) -> Any:
    """The plan as soon as it deviates no more than that of the idle card; at once where nothing is held by others. Ctrl-C ends it.

    Raises: HarnessError of `choose`.
    """
    from harness.plan.busy import holders, idle

    while True:
        machine = chain.machine()
        held = holders(machine)
        best = chain.plan(idle(machine), dataset, **asked, say=say) if held else None
        made = chain.plan(machine, dataset, **asked, say=say)
        if best is None or best.chosen is None or (made.chosen is not None and len(made.chosen.deviations) <= len(best.chosen.deviations)):
            return made
        say(f"waiting: {held}; Ctrl-C ends this")
        try:
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def answer_for_openpi(recipe: str | None, sets: list[str] | None, asked: dict[str, Any], run: Path | None, as_json: bool) -> None:
    """Whether upstream's own step fits, as configured: exit code 0 or 1. Without --recipe it is the published one.

    Raises: HarnessError of `plan.upstream_plan`.
    """
    from harness.flow.chain import recipe_of
    from harness.openpi import plan as upstream_plan
    from harness.probe.machine import probe
    from harness.received.files import there
    from harness.recipe.schema import load_recipe
    from harness.run.directory import RECIPE, RunDir, cache_root, sha256_json
    from harness.show.plan import plan_view

    if asked["recompile"] or asked["device"] == "cpu":
        what = "upstream's step is not compiled here: its versions are others than ours" if asked["recompile"] else "openpi's trainer is planned for GPUs"
        fix = "leave --compile out" if asked["recompile"] else "leave --device cpu out, or add --gpu NAME"
        raise HarnessError("upstream-cannot", what, need="the table of compiled answers that is shipped", fix=fix)
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
    from harness.plan.matrix import cells, picture, words
    from harness.show.matrix import markdown
    from harness.units import format_bytes

    table = cells()
    print(markdown(table, words, lambda card: format_bytes(CARDS[card].memory_bytes)))
    path = (run or Path()) / "hardware.png"
    picture(table, path)
    print(path, file=sys.stderr)
