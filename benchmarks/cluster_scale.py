"""What the cost model says of a step on many hosts: the table of docs/clusters.md, as Markdown.

    python -m benchmarks.cluster_scale [--card h100]

Nothing is measured and nothing compiled. A host has eight cards, which hold one replica of the state in eight
shards, so that only gradients pass the network between hosts.
"""

from __future__ import annotations

import argparse

from harness.artifacts.plan import Levers
from harness.plan import cost
from harness.plan.cards import CARDS
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe

CARDS_A_HOST, LARGEST_MICROBATCH = 8, 32
# Hosts, and rows of the global batch: the recipe's own while each card has rows of it; then 32 rows a card.
SHAPES = ((1, 256), (2, 256), (8, 256), (8, 2048), (64, 512), (64, 16384))
NETS = {"100 Gb/s": 100e9 / 8, "400 Gb/s": 400e9 / 8, "8 x 400 Gb/s": 3200e9 / 8}


def levers(hosts: int, rows: int) -> Levers:
    """The levers of such a step. Rows of a card that are more than 32 are accumulated."""
    devices = hosts * CARDS_A_HOST
    each = rows // devices
    microbatch = min(each, LARGEST_MICROBATCH)
    return Levers(
        platform="cuda",
        devices=devices,
        hosts=hosts,
        fsdp=CARDS_A_HOST,
        microbatch=microbatch,
        accumulation_steps=each // microbatch,
        prompt_tokens=48,
        cameras=["base_0_rgb", "left_wrist_0_rgb"],
    )


def row(recipe: Recipe, card: str, hosts: int, rows: int) -> list[str]:
    """The cells of one shape: cards, batch, seconds without a network, bytes over it, seconds by rate."""
    made = levers(hosts, rows)
    alone = cost.seconds_per_step(recipe, made, CARDS[card], None, None)
    moved = cost.exchange_seconds(recipe, made, 1.0) * cost.SUSTAINED_BYTES
    cells = [str(made.devices), f"{rows:,}", f"{alone:.2f} s", f"{moved / 1e9:.1f} GB" if moved else "-"]
    for rate in NETS.values():
        cells.append(f"{alone + cost.exchange_seconds(recipe, made, rate):.2f} s" if moved else "-")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--card", default="h100", choices=sorted(CARDS))
    card = parser.parse_args().card
    for name in ("pi05_libero", "pi05_libero_lora"):
        recipe = load_recipe(name)
        heads = [f"{card}s", "global batch", "step, no network", "over a host's network", *NETS]
        print(f"{name}:\n")
        for cells in (heads, ["---"] * len(heads), *(row(recipe, card, *shape) for shape in SHAPES)):
            print(f"| {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
