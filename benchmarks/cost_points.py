"""Measured step times beside the cost model's, as a Markdown table.

    python -m benchmarks.cost_points

Nothing is measured here. The points stand in `harness.plan.measured`, with their sources. The first rows are
our own step's, which the model predicts. The others are steps of other programs, which it does not: beside
them stands our own step for the same card, batch, cameras and prompt.

Below it, what else the measured files of cards hold: bytes, the rates of products, copies and links, the
memory outside of the pool, the latency of an action chunk. `benchmarks.measured_cards` draws them.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from harness.plan.measured import OTHERS, OURS, Point, measured_cards
from harness.show.calibration import calibration_view


def row(point: Point, program: str) -> list[str]:
    """The cells of one point."""
    return [
        f"{point.card}: {point.recipe}, {point.name}",
        program,
        point.source,
        f"{point.seconds:.2f} s",
        f"{point.predicted:.2f} s",
        f"{100 * point.error:+.1f} %",
    ]


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.cost_points", description="Measured step times beside the cost model's."
    ).parse_args()
    heads = ["point", "program", "source", "measured", "predicted", "error"]
    rows = [row(point, "ours") for point in OURS]
    rows += [row(point, "another, not modelled") for point in OTHERS]
    for cells in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(cells)} |")
    most = max(abs(point.error) for point in OURS)
    names = ", ".join(sorted({point.card for point in OURS}))
    print(f"\nOur own: at most {100 * most:.1f} % off, in {len(OURS)} plans on {names}.")
    earlier = sum(point.earlier for point in OURS)
    if earlier:
        print(f"{earlier} of them ran an earlier version of the step; the prediction is of today's.")
    for card in measured_cards().values():
        print()
        Console(width=110).print(calibration_view(card), crop=False)


if __name__ == "__main__":
    main()
