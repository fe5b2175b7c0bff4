"""What a held-out pass costs: computed for the real recipes, measured on the smoke recipe.

    python -m benchmarks.held_out                                 # the table of cards, moments
    python -m benchmarks.held_out --smoke [--steps 20] [--run DIR]
    python -m benchmarks.held_out --memory rtx_4090               # some minutes a recipe

Without an option: for every card of the table of `harness plan --matrix`, the seconds of a step and of a pass
by the planner's cost model, for the plan that it chooses. The pass has the default number of frames over 85
episodes (5 % of LIBERO's) and half as many switches. The share is that of a run that saves every 1,000 steps.
Nothing in the table is measured.

--smoke trains the smoke recipe through the command line, with two held-out episodes, the default number of
frames and a save every tenth of the steps, so that there are many passes. It prints the median time of a step
and of a pass, and the share of a run that saves every 1,000 steps: pass / (pass + 1,000 steps). The first
step and the first pass, which begin cold, are left out. What compiling the pass takes is printed too; it is
paid once a run.

--memory compiles the pass of the plan that is chosen for a card which need not be here, and prints its bytes
beside those of the step: the whole state, the pass and its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.artifacts.held_out import read_held_out
from harness.data.held_out_rows import SAMPLING_STEPS, count_of
from harness.plan.candidates import changed
from harness.plan.cards import CARDS
from harness.plan.cost import held_out_seconds
from harness.plan.matrix import cells
from harness.recipe.holdout import Holdout
from harness.recipe.load import load_recipe
from harness.units import format_bytes

PUBLISHED_CADENCE = 1_000
EPISODES = 85


def table() -> None:
    rows = count_of(Holdout(episodes=0.05), EPISODES)
    print(f"{rows} rows a pass, over {EPISODES} episodes; a save every {PUBLISHED_CADENCE:,} steps; computed")
    print(f"{'card':14} {'recipe':18} {'step, s':>9} {'pass, s':>9} {'share':>9}")
    shares = []
    for cell in cells():
        if cell.plan is None or cell.plan.seconds_per_step is None:
            continue
        recipe = changed(load_recipe(cell.recipe), cell.plan.changes)
        step = cell.plan.seconds_per_step
        passed = held_out_seconds(recipe, cell.plan.levers, CARDS[cell.card], rows, SAMPLING_STEPS)
        shares.append(share_of(passed, step))
        print(f"{cell.card:14} {cell.recipe:18} {step:9.1f} {passed:9.2f} {shares[-1]:9.3%}")
    print(f"largest share: {max(shares):.3%}")


def memory(card: str) -> None:
    """Compiles the pass for an absent card."""
    from jax.experimental import topologies

    from harness.train.held_out_program import compile_held_out
    from harness.train.setup import setup_of
    from harness.train.sharding import Layout

    rows = count_of(Holdout(episodes=0.05), EPISODES)
    options = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}
    for cell in cells():
        if cell.card != card or cell.plan is None:
            continue
        recipe, levers = changed(load_recipe(cell.recipe), cell.plan.changes), cell.plan.levers
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=CARDS[card].target(), topology=f"1x1x{levers.devices}"
        )
        setup = setup_of(recipe, Layout(topology.devices, levers.fsdp, levers.host))
        found = compile_held_out(setup, levers, rows, options=options, platform="cuda")
        step = format_bytes(cell.plan.phases["step"])
        beside = f"microbatch {levers.microbatch}, host {', '.join(levers.host) or 'nothing'}"
        print(
            f"{card} {cell.recipe}: pass {format_bytes(found.device_bytes)}, of it"
            f" {format_bytes(found.own_bytes)} of its own, {found.rows} rows at a time; step {step}"
            f" ({beside})",
            flush=True,
        )


def share_of(pass_s: float, step_s: float) -> float:
    return pass_s / (pass_s + PUBLISHED_CADENCE * step_s)


def smoke(steps: int, run: Path) -> None:
    """Trains, and prints what the run's own files say."""
    command = [sys.executable, "-m", "harness.cli", "train", "--recipe=smoke", f"--steps={steps}"]
    command += [
        f"--run={run}",
        "--set=train.holdout.episodes=2",
        f"--set=train.save_every_steps={steps // 10}",
    ]
    command += ["--set=data.degenerate_dimensions=pass_through"]
    compiling = None
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"WANDB_MODE": "disabled"}
    ) as child:
        assert child.stderr is not None
        started = None
        for line in child.stderr:
            print(line, end="", file=sys.stderr)
            if line.startswith("compiling the held-out pass"):
                started = time.monotonic()
            elif started is not None and compiling is None:
                compiling = time.monotonic() - started
    lines: list[dict[str, Any]] = [
        json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()
    ]
    step_s = statistics.median(line["step_s"] for line in lines[1:])
    found = read_held_out(run / "held_out.jsonl", run)
    assert found is not None
    pass_s = statistics.median(line.seconds for line in found.lines[1:])
    rows = sum(found.lines[0].frames) + len(found.lines[0].switches)
    print(f"step {step_s:.3f} s (median of {len(lines) - 1})")
    print(f"pass {pass_s:.3f} s over {rows} rows (median of {len(found.lines) - 1})")
    print(f"compiling the pass {compiling or 0.0:.1f} s, once a run")
    print(f"share of a run that saves every {PUBLISHED_CADENCE:,} steps: {share_of(pass_s, step_s):.3%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="measure on the smoke recipe")
    parser.add_argument("--steps", type=int, default=20, help="steps of the smoke run, at least 20")
    parser.add_argument("--run", type=Path, help="where the smoke run goes; default: deleted")
    parser.add_argument(
        "--memory", metavar="CARD", choices=sorted(CARDS), help="compile the pass for this card"
    )
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
    elif not options.smoke:
        table()
    elif options.run is not None:
        smoke(max(20, options.steps), options.run)
    else:
        with tempfile.TemporaryDirectory() as directory:
            smoke(max(20, options.steps), Path(directory) / "run")


if __name__ == "__main__":
    main()
