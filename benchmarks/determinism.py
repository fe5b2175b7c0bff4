"""Effect of deterministic kernels on the training step of an absent card, by XLA's own account.

    python -m benchmarks.determinism [--recipe pi05_libero_lora] [--gpu rtx_4090] [--microbatch 8]
    [--accumulation 4]

Memory and kernels are compared. No time on a GPU is measured, since there is no GPU. The same step is
compiled with and without --xla_gpu_deterministic_ops, and so without autotuning. The flag has another cost:
XLA times no kernel on the card and takes the first that fits (`harness/train/kernels.py`). Only a card can
show that cost, because XLA reports neither the bytes moved nor the operations of a program for an absent
card. On a CPU the flag changes nothing, as the last row shows: the same executable.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

FLAG = "xla_gpu_deterministic_ops"
CAMERAS = ["base_0_rgb", "left_wrist_0_rgb"]


class Compiled(NamedTuple):
    """`kernels`: launches in the program's text, a loop's body once.

    `scatters`: those that XLA left as they are, and loops in their place.
    """

    device_bytes: int
    kernels: int
    loops: int
    scatters: int
    sorts: int
    sha256: str


def look(step: Any) -> Compiled:
    """Source: the opcodes of XLA's optimized program."""
    from harness.train.executable import executable_sha256

    text = step.run.as_text()
    # The computations of fusions hold instructions that are no kernel of their own.
    opcodes = Counter(re.findall(r"^\s+(?:ROOT )?%\S+ = \S.*? ([a-z][a-z0-9-]*)\(", text, re.MULTILINE))
    kernels = opcodes["fusion"] + opcodes["custom-call"]
    return Compiled(
        step.bytes["device"],
        kernels,
        opcodes["while"],
        opcodes["scatter"],
        opcodes["sort"],
        executable_sha256(text),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.determinism",
        description="Deterministic kernels, compiled for a card that is not here.",
    )
    parser.add_argument("--recipe", default="pi05_libero_lora")
    parser.add_argument("--gpu", default="rtx_4090")
    parser.add_argument("--microbatch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=4)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    from harness.artifacts import Levers
    from harness.plan.cards import CARDS
    from harness.plan.compile import ABSENT_GPU_OPTIONS
    from harness.recipe.load import load_recipe
    from harness.train.compiled import compile_step
    from harness.train.setup import setup_of
    from harness.train.sharding import Layout, local_layout

    recipe = load_recipe(options.recipe, [f"train.global_batch={options.microbatch * options.accumulation}"])
    levers = Levers(
        platform="cuda",
        microbatch=options.microbatch,
        accumulation_steps=options.accumulation,
        prompt_tokens=48,
        cameras=CAMERAS,
    )
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=CARDS[options.gpu].target(), topology="1x1x1"
    )
    setup = setup_of(recipe, Layout(topology.devices, levers.fsdp, levers.host))
    rows = {}
    for flag in ("False", "True"):
        print(f"compiling with {FLAG}={flag}", file=sys.stderr)
        rows[flag] = look(
            compile_step(setup, levers, options=ABSENT_GPU_OPTIONS | {FLAG: flag}, platform="cuda")
        )
    plain, same = rows["False"], rows["True"]
    print(
        f"{options.recipe}, {options.microbatch} x {options.accumulation} samples, compiled for"
        f" {options.gpu}; no time was measured\n"
    )
    print("| by XLA's account | as it comes | deterministic | ratio |\n| --- | --- | --- | --- |")
    for name, was, now in zip(Compiled._fields[:-1], plain[:-1], same[:-1], strict=True):
        print(f"| {name} | {was:,.0f} | {now:,.0f} | {f'{now / was:.4f}' if was else ''} |")
    print(f"| the same executable | | {'yes' if plain.sha256 == same.sha256 else 'no'} | |")
    small = load_recipe("smoke", ["model.image_size=56", "data.augment=false"])
    on_cpu = Levers(platform="cpu", microbatch=small.train.global_batch, prompt_tokens=32, cameras=CAMERAS)
    setup = setup_of(small, local_layout(on_cpu))
    here = {look(compile_step(setup, on_cpu, options={FLAG: flag})).sha256 for flag in ("False", "True")}
    print(f"| the same executable on this CPU (smoke) | | {'yes' if len(here) == 1 else 'no'} | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
