"""The table of cards as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from harness.plan.cards import CARDS
from harness.plan.matrix import COLORS, RECIPES, Cell, words
from harness.run.directory import write_atomic
from harness.units import GIB


def picture(table: list[Cell], path: Path) -> None:
    """Writes the table as a PNG: one row per card, one column per recipe, bytes and seconds in each cell.

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
            column + 0.49,
            row,
            words(cell),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if cell.verdict in ("exact", "nothing fits") else "black",
        )
    axes.set_yticks(
        range(len(cards)),
        [f"{card}  {CARDS[card].memory_bytes / GIB:.0f} GiB" for card in reversed(cards)],
        fontsize=9,
    )
    axes.set_xticks([0.49, 1.49], RECIPES)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlim(0, len(RECIPES))
    axes.set_ylim(-0.6, len(cards) - 0.4)
    for side in axes.spines.values():
        side.set_visible(False)
    shown = {cell.verdict for cell in table}
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for name, color in COLORS.items() if name in shown]
    axes.legend(
        handles,
        [name for name in COLORS if name in shown],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(path, drawn.getvalue())
