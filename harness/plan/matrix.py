"""Makes the table of cards from the atlas alone: what each card can train, and the predicted time of a step.

Host memory is taken as not known, so plans that hold parts of the state there stream their saves.
"""

from __future__ import annotations

from typing import NamedTuple

from harness.artifacts import Candidate, Host, Machine
from harness.errors import HarnessError
from harness.plan.asked import Ask, Tools
from harness.plan.atlas import Atlas, shipped
from harness.plan.cards import CARDS
from harness.plan.choose import choose
from harness.plan.need import not_asked
from harness.recipe.load import load_recipe
from harness.units import format_bytes, format_seconds

RECIPES = ("pi05_libero", "pi05_libero_lora")
# Red, blue and green that stay apart for color-blind eyes; grey for what the atlas does not know.
COLORS = {
    "exact": "#2a7f62",
    "exact, host memory": "#7fb069",
    "approximate": "#e6aa68",
    "nothing fits": "#c8553d",
    "not in the atlas": "#c9c9c9",
}


class Cell(NamedTuple):
    """The result for one card and one recipe. `plan` is the chosen plan."""

    card: str
    recipe: str
    verdict: str
    plan: Candidate | None

    @property
    def color(self) -> str:
        return COLORS[self.verdict]


def cells(atlas: Atlas | None = None) -> list[Cell]:
    """A cell for every card and every recipe of the table, ordered by the card's memory.

    Raises: HarnessError "atlas-stale" if the atlas is of another step.
    """
    known = atlas or shipped()
    if known.refused:
        raise HarnessError(
            "atlas-stale", known.refused, need="an atlas of this version", fix="python benchmarks/atlas.py"
        )
    cards = sorted(CARDS, key=lambda key: (CARDS[key].memory_bytes, key))
    return [_cell(card, recipe, known) for card in cards for recipe in RECIPES]


def _cell(card: str, recipe: str, known: Atlas) -> Cell:
    try:
        chosen = choose(
            load_recipe(recipe),
            Machine(host=Host()),
            None,
            Ask(gpu=card),
            tools=Tools(known, not_asked),
            advise=False,
        ).chosen
    except HarnessError as error:
        if error.code != "not-in-atlas":
            raise
        return Cell(card, recipe, "not in the atlas", None)
    if chosen is None:
        return Cell(card, recipe, "nothing fits", None)
    exact = "exact, host memory" if chosen.levers.host else "exact"
    return Cell(card, recipe, "approximate" if chosen.deviations else exact, chosen)


def words(cell: Cell) -> str:
    """Bytes, seconds and changes, in one line."""
    if cell.plan is None:
        return cell.verdict
    host = f" + {format_bytes(cell.plan.host_bytes)} host" if cell.plan.levers.host else ""
    change = f"{short_changes(cell.plan)}: " if cell.plan.changes else ""
    return (
        f"{change}{format_bytes(cell.plan.device_bytes)}{host}, {format_seconds(cell.plan.seconds_per_step)}"
        " a step"
    )


def short_changes(plan: Candidate) -> str:
    """The changes of an approximate plan in a few words."""
    changes = plan.changes
    trained = {"lora": "LoRA", "lora_frozen_vision": "LoRA, vision frozen"}.get(
        changes.get("train.trained", ""), ""
    )
    moments = "8-bit moments" if "train.optimizer.moments" in changes else ""
    frozen = f"{changes['train.frozen']} weights" if "train.frozen" in changes else ""
    parts = [part for part in (trained, moments, frozen) if part]
    return ", ".join(parts) or "no EMA"
