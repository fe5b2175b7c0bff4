"""Drawings of numbers as coordinates for inline SVG.

They follow the page's colours, in the dark and on paper.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from harness.artifacts import Moved, Prediction

# A panel's drawing units. The browser scales it.
WIDTH, HEIGHT, PAD = 320, 120, 6
# The number of shades between no movement and the largest.
SHADES = 8
# Parts of the network that are drawn. π0.5 has some twenty.
MOST_ROWS = 100
# Decades of relative movement that the shades span.
SPAN = 3.0


class Panel(NamedTuple):
    """One action dimension: the points of two polylines, and the start of the padding.

    The padding lies after the episode's end.
    """

    name: str
    recorded: str
    predicted: str
    ends_at: float | None
    low: float
    high: float
    error: float


class Cell(NamedTuple):
    """One layer of one part. `shade` 0 did not move, SHADES moved most; None: there is no such layer."""

    shade: int | None
    words: str


class Row(NamedTuple):
    name: str
    cells: list[Cell]


def prediction_panels(prediction: Prediction) -> list[Panel]:
    """One panel per dimension of the action."""
    times = len(prediction.predicted)
    step = (WIDTH - 2 * PAD) / max(times - 1, 1)
    ends = prediction.is_pad.index(True) if True in prediction.is_pad else None
    panels = []
    for d, error in enumerate(prediction.mean_absolute_error):
        lines = [[row[d] for row in rows] for rows in (prediction.recorded, prediction.predicted)]
        low, high = min(map(min, lines)), max(map(max, lines))
        span = high - low or 1.0
        points = [
            " ".join(
                f"{PAD + i * step:.1f},{HEIGHT - PAD - (v - low) / span * (HEIGHT - 2 * PAD):.1f}"
                for i, v in enumerate(line)
            )
            for line in lines
        ]
        panels.append(
            Panel(
                f"actions[{d}]",
                points[0],
                points[1],
                None if ends is None else PAD + (ends - 0.5) * step,
                low,
                high,
                error,
            )
        )
    return panels


def moved_rows(moved: Moved) -> tuple[list[Row], int]:
    """(rows, number of layers). A row is a part of the network with one cell per layer.

    Only the first hundred parts are drawn.
    """
    names = list(dict.fromkeys(block.name for block in moved.blocks))[:MOST_ROWS]
    layers = max((block.layer + 1 for block in moved.blocks if block.layer is not None), default=1)
    most = max((block.relative for block in moved.blocks if block.relative), default=0.0)
    cells = {
        (block.name, block.layer or 0): Cell(shade(block.relative, most), _words(block.layer, block.relative))
        for block in moved.blocks
    }
    return [
        Row(name, [cells.get((name, layer), Cell(None, "")) for layer in range(layers)]) for name in names
    ], layers


def shade(relative: float | None, most: float) -> int | None:
    """The shade of a relative movement, on a logarithmic scale of SPAN decades below `most`.

    It is at least 1 for any movement.
    """
    if relative is None:
        return None
    if not relative or not most:
        return 0
    return max(1, math.ceil(SHADES * (1 + max(-1.0, math.log10(relative / most) / SPAN))))


def _words(layer: int | None, relative: float | None) -> str:
    where = "" if layer is None else f"layer {layer}: "
    return where + ("unknown" if relative is None else f"{relative:.2e}" if relative else "did not move")
