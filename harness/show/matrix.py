"""The table of cards as Markdown. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def markdown(table: Sequence[Any], words: Callable[[Any], str], memory: Callable[[str], str]) -> str:
    """One row per card, one column per recipe. `words` gives a cell's text, `memory` the card's memory."""
    recipes = list(dict.fromkeys(cell.recipe for cell in table))
    lines = [f"| card | memory | {' | '.join(recipes)} |", f"| --- | --- |{' --- |' * len(recipes)}"]
    for card in dict.fromkeys(cell.card for cell in table):
        of = {cell.recipe: cell for cell in table if cell.card == card}
        told = [
            ("**exact** " if of[recipe].verdict.startswith("exact") else "") + words(of[recipe])
            for recipe in recipes
        ]
        lines.append(f"| {card} | {memory(card)} | {' | '.join(told)} |")
    return "\n".join(lines)
