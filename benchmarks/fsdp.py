"""GiB per device of the published recipe over several cards, by XLA's buffer assignment.

    python -m benchmarks.fsdp [--only a40]

It covers the step and everything else that a run needs. Nothing runs on a GPU, and none need be present. A
row takes about two minutes on two cores, and is kept in the plan cache (HARNESS_CACHE). openpi's own step
over 2 x A100-80 with fsdp 2 at batch 256 compiles to 72.8 GiB a device (benchmarks/openpi_compiled.py).
"""

from __future__ import annotations

import argparse
from typing import Literal, NamedTuple, get_args

from harness.artifacts import Levers
from harness.plan import cards
from harness.plan.compile import Request, compiled
from harness.recipe.load import load_recipe
from harness.units import GIB

Phase = Literal["step", "init", "load", "save"]


class Row(NamedTuple):
    card: str
    devices: int
    fsdp: int
    microbatch: int


# Global batch 256 in every row; the first card's rows differ in how the batch is cut.
ROWS = [
    Row("a40", 8, 8, 4),
    Row("a40", 8, 8, 32),
    Row("a100_80", 2, 2, 16),
    Row("a100_80", 2, 2, 128),
    Row("a40", 4, 2, 8),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fsdp", description="Compile the published recipe over several cards."
    )
    parser.add_argument("--only", choices=sorted({row.card for row in ROWS}), help="rows of this card alone")
    only = parser.parse_args().only
    recipe = load_recipe("pi05_libero")
    print(
        "| cards | fsdp | microbatch | step | init | load | save |\n| --- | --- | --- | --- | --- | --- |"
        " --- |",
        flush=True,
    )
    for row in ROWS:
        if only not in (None, row.card):
            continue
        steps = recipe.train.global_batch // (row.devices * row.microbatch)
        levers = Levers(
            platform="cuda",
            devices=row.devices,
            fsdp=row.fsdp,
            microbatch=row.microbatch,
            accumulation_steps=steps,
            prompt_tokens=48,
            cameras=[camera for camera, feature in recipe.data.cameras.items() if feature],
        )
        target = cards.CARDS[row.card].target()
        found = [
            compiled(Request(recipe=recipe, levers=levers, target=target, phase=phase)).bytes["device"]
            for phase in get_args(Phase)
        ]
        sizes = " | ".join(f"{size / GIB:.1f}" for size in found)
        print(f"| {row.devices} x {row.card} | {row.fsdp} | {row.microbatch} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
