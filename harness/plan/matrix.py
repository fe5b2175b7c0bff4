"""The table of cards: what each can train, with any amount of host memory, and how long a step is predicted to take. From the atlas alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from harness.artifacts import Candidate, Host, Machine
from harness.errors import HarnessError
from harness.plan.atlas import Atlas, shipped
from harness.plan.cards import CARDS
from harness.plan.choose import Ask, Tools, choose, not_asked
from harness.recipe.schema import load_recipe
from harness.run.directory import write_atomic
from harness.units import GIB, format_bytes, format_seconds

RECIPES = ("pi05_libero", "pi05_libero_lora")
# Red, blue and green that stay apart for color-blind eyes; grey for what the atlas does not know.
_COLORS = {"exact": "#2a7f62", "exact, host memory": "#7fb069", "approximate": "#e6aa68", "nothing fits": "#c8553d", "not in the atlas": "#c9c9c9"}


class Cell(NamedTuple):
    """What one card does with one recipe. `plan` is the chosen one."""

    card: str
    recipe: str
    verdict: str
    plan: Candidate | None

    @property
    def color(self) -> str:
        return _COLORS[self.verdict]


def cells(atlas: Atlas | None = None) -> list[Cell]:
    """Every card with every recipe of the table, by memory.

    Raises: HarnessError "atlas-stale" when the atlas is of another step.
    """
    known = atlas or shipped()
    if known.refused:
        raise HarnessError("atlas-stale", known.refused, need="an atlas of this version", fix="python benchmarks/atlas.py")
    cards = sorted(CARDS, key=lambda key: (CARDS[key].memory_bytes, key))
    return [_cell(card, recipe, known) for card in cards for recipe in RECIPES]


def _cell(card: str, recipe: str, known: Atlas) -> Cell:
    try:
        chosen = choose(load_recipe(recipe), Machine(host=Host()), None, Ask(gpu=card), tools=Tools(known, not_asked), advise=False).chosen
    except HarnessError as error:
        if error.code != "not-in-atlas":
            raise
        return Cell(card, recipe, "not in the atlas", None)
    if chosen is None:
        return Cell(card, recipe, "nothing fits", None)
    exact = "exact, host memory" if chosen.levers.host else "exact"
    return Cell(card, recipe, "approximate" if chosen.deviations else exact, chosen)


def picture(table: list[Cell], path: Path) -> None:
    """Writes the table as a PNG: a row a card, a column a recipe, and in each cell bytes and seconds.

    Raises: HarnessError "not-writable".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cards = list(dict.fromkeys(cell.card for cell in table))
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(cards) + 1.4))
    for cell in table:
        row, column = len(cards) - 1 - cards.index(cell.card), RECIPES.index(cell.recipe)
        axes.barh(row, 0.98, left=column, height=0.9, color=cell.color)
        axes.text(
            column + 0.49, row, words(cell), ha="center", va="center", fontsize=8, color="white" if cell.verdict in ("exact", "nothing fits") else "black"
        )
    axes.set_yticks(range(len(cards)), [f"{card}  {CARDS[card].memory_bytes / GIB:.0f} GiB" for card in reversed(cards)], fontsize=9)
    axes.set_xticks([0.49, 1.49], RECIPES)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlim(0, len(RECIPES))
    axes.set_ylim(-0.6, len(cards) - 0.4)
    for side in axes.spines.values():
        side.set_visible(False)
    shown = {cell.verdict for cell in table}
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for name, color in _COLORS.items() if name in shown]
    axes.legend(handles, [name for name in _COLORS if name in shown], loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=5, frameon=False, fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(path, drawn.getvalue())


def _ink(cell: Cell) -> str:
    return "white" if cell.verdict in ("exact", "nothing fits") else "black"


def words(cell: Cell) -> str:
    """Bytes, seconds and what is changed, in one line."""
    if cell.plan is None:
        return cell.verdict
    host = f" + {format_bytes(cell.plan.host_bytes)} host" if cell.plan.levers.host else ""
    change = f"{short_changes(cell.plan)}: " if cell.plan.changes else ""
    return f"{change}{format_bytes(cell.plan.device_bytes)}{host}, {format_seconds(cell.plan.seconds_per_step)} a step"


def short_changes(plan: Candidate) -> str:
    """The changes of an approximate plan in a few words."""
    changes = plan.changes
    trained = {"lora": "LoRA", "lora_frozen_vision": "LoRA, vision frozen"}.get(changes.get("train.trained", ""), "")
    moments = "8-bit moments" if "train.optimizer.moments" in changes else ""
    frozen = f"{changes['train.frozen']} weights" if "train.frozen" in changes else ""
    parts = [part for part in (trained, moments, frozen) if part]
    return ", ".join(parts) or "no EMA"
