"""Closes the loop: scripted episodes in the simulator, a small π0.5 trained on them, and its success there.

    python -m benchmarks.closed_loop STAGE DIR [--episodes 200] [--workers 2] [--task T] [--steps N]

Stages, each of which goes on where it was: `generate` (two cores for an hour), `look` (what a checkpoint
would do at recorded frames that it has not seen), `train` (minutes on a GPU, an evening on a CPU), `evaluate`
(held-out initial states, beside the controls; minutes), `table`. All that they write is in DIR.

It needs $HARNESS_SIMULATOR, the simulator's virtual environment, for `generate` and `evaluate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.closed_loop import evaluate, generate, look, table, train
from benchmarks.closed_loop.plan import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("generate", "train", "look", "evaluate", "table"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--episodes", type=int, default=200, help="generate: successful episodes in all")
    parser.add_argument("--workers", type=int, default=1, help="generate: simulators at a time, 2 GB each")
    parser.add_argument("--name", default="run", help="train, look, evaluate: the run below DIR")
    parser.add_argument("--steps", type=int, help="train: up to this step instead of the recipe's")
    parser.add_argument(
        "--task",
        action="append",
        choices=[f"{suite.removeprefix('libero_')}/{task}" for suite, task in TASKS],
        help="evaluate: only this task (may be given again). Default: those that were recorded",
    )
    parser.add_argument("--step", type=int, help="look, evaluate: this step of the run instead of its last")
    options = parser.parse_args()
    if options.stage == "generate":
        generate.generate(options.directory / "dataset", options.episodes, options.workers)
    elif options.stage == "train":
        train.train(options.directory, options.name, options.steps)
    elif options.stage == "look":
        look.look(options.directory, options.name, options.step)
    elif options.stage == "evaluate":
        evaluate.evaluate(options.directory, options.name, options.step, options.task)
    else:
        print(table.table(options.directory))


if __name__ == "__main__":
    main()
