"""Kernels, bytes and operations of a training step, compiled for cards that are not here.

    python -m benchmarks.step_program [--cards h200,h100] [--levels block,mlp,names] [--rows 32] [--steps 2]
    [--recipe pi05_libero] [--set KEY=VALUE ...] [--keep DIR]

A step of `--steps` microbatches of `--rows` is compiled. A kernel is an instruction of the scheduled HLO that
starts work on the device; a loop's body counts as often as the loop runs. Bytes moved are those of each
kernel's operands and results, slices counted as slices (`harness/plan/launches.py`). Operations are those of
matrix products. GiB are what XLA's buffer assignment asks of the device. ".remat" counts the instructions
that XLA computes again by itself, because the card's memory is short.

Nothing here is measured on a card. A program takes about a minute on two idle cores. `--keep` writes the
optimized HLO of each to DIR.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import Any

# An instruction that XLA's own rematerialization has copied, where it is defined.
_AGAIN = re.compile(r"^\s*+%[\w.-]*?\.remat[\w.]*+ =", re.MULTILINE)


def compiled(recipe: Any, card: str, remat: str, rows: int, steps: int) -> Any:
    """The compiled step of `recipe` for `card`, which need not be here."""
    from jax.experimental import topologies

    from harness.artifacts import Levers
    from harness.plan.candidates import prompt_tokens
    from harness.plan.cards import CARDS
    from harness.plan.compile import ABSENT_GPU_OPTIONS
    from harness.train.compiled import compile_step
    from harness.train.setup import setup_of
    from harness.train.sharding import Layout

    levers = Levers.model_validate(
        {
            "platform": "cuda",
            "microbatch": rows,
            "accumulation_steps": steps,
            "prompt_tokens": prompt_tokens(recipe, None),
            "cameras": [camera for camera, feature in recipe.data.cameras.items() if feature],
            "remat": remat,
        }
    )
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=CARDS[card].target(), topology="1x1x1"
    )
    setup = setup_of(recipe, Layout(topology.devices))
    return compile_step(setup, levers, options=ABSENT_GPU_OPTIONS, platform="cuda")


def row(name: str, text: str, device_bytes: int, seconds: float) -> str:
    """One line of figures."""
    from harness.plan.launches import kernels_of, totals
    from harness.units import format_bytes

    sums, moment = totals(kernels_of(text, unknown=True)), f"{seconds:.0f} s"
    return (
        f"{name:16} {sums.kernels:6,} kernels {sums.bytes / 1e9:7,.0f} GB {sums.operations / 1e12:6.1f} Top "
        f"{format_bytes(device_bytes):>9} compiled, {len(_AGAIN.findall(text))} .remat ({moment})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_program", description="The training step's program, counted."
    )
    parser.add_argument("--cards", default="h200,h100", help="names of the table, with commas")
    parser.add_argument("--levels", default="block,mlp,names", help="levels of rematerialization")
    parser.add_argument("--rows", type=int, default=32, help="rows of a microbatch")
    parser.add_argument("--steps", type=int, default=2, help="microbatches of a step")
    parser.add_argument("--recipe", default="pi05_libero")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="writes the optimized HLO there")
    options = parser.parse_args()
    from harness.recipe.load import load_recipe
    from harness.train import device

    device.start()
    batch = f"train.global_batch={options.rows * options.steps}"
    recipe = load_recipe(options.recipe, [batch, "weights.source=null", *options.set])
    for card in options.cards.split(","):
        for remat in options.levels.split(","):
            begun = time.monotonic()
            step = compiled(recipe, card, remat, options.rows, options.steps)
            text = step.run.as_text()
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{card}-{remat}.hlo").write_text(text)
            print(row(f"{card} {remat}", text, step.bytes["device"], time.monotonic() - begun), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    main()
