"""Compares what LeRobot's own pipelines do with our exported policies with what the training did.

    python benchmarks/other_pipelines.py CHECKOUT PYTHON [--golden FILE]

CHECKOUT and PYTHON are those of `benchmarks/other_models.py lerobot`. LeRobot loads both pipelines of tiny
exports: without the state, with it in the prompt, and with relative actions. It is given raw states, tasks
and recorded actions. Compared are the prompts, the normalized actions, and the actions that its
postprocessor makes of normalized ones. The tokenizer is replaced by one that keeps the text.

--golden writes what LeRobot made, for tests that need no torch. Exit code 1 for another prompt, or a
difference of actions beyond 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.norm_files import read_norm_stats
from harness.data.prompts import instruction
from harness.data.space import Space
from harness.data.transforms import clean_prompt, normalize, normalized, unnormalize
from harness.recipe.schema import Recipe
from tests.support import pipelines

TOLERANCE = 1e-5
CHILD = Path(__file__).with_name("other_models_child.py")


def ours(recipe: Recipe, step: Path, asked: dict[str, np.ndarray]) -> dict[str, Any]:
    """The prompts, and the actions before and after the model, as training and prediction have them."""
    file = step / "assets" / recipe.data.asset_id / "norm_stats.json"
    stats, mode = read_norm_stats(file).stats, recipe.data.normalization
    space, states = Space.of(recipe.data), asked["states"]
    seen = space.actions(asked["recorded"], states)
    edges = np.linspace(-1, 1, 257)[:-1]
    bins = np.digitize(normalized(states, stats["state"], mode), edges) - 1
    prompts = []
    for n, each in enumerate(bins.tolist()):
        text = clean_prompt(instruction(recipe.data, pipelines.TASKS[n % len(pipelines.TASKS)]))
        with_state = f"Task: {text}, State: {' '.join(map(str, each))};\nAction: "
        prompts.append(with_state if recipe.model.discrete_state_input else f"{text}\n")
    return {
        "prompts": prompts,
        "normalized": normalize(seen, stats["actions"], mode),
        "recorded": space.recorded(unnormalize(asked["normalized"], stats["actions"], mode), states),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("python")
    parser.add_argument("--golden", type=Path)
    options = parser.parse_args()
    failed, golden, asked = 0, {}, pipelines.frames()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.savez(folder / "frames.npz", **asked)
        (folder / "tasks.json").write_text(json.dumps(pipelines.TASKS))
        for kind in pipelines.KINDS:
            recipe, out = pipelines.exported_as(folder, kind)
            made = folder / f"{kind}.npz"
            subprocess.run(
                [options.python, CHILD, "pipelines", "lerobot", options.checkout, folder / "frames.npz",
                 folder / "tasks.json", out, made],
                check=True, timeout=300,
            )  # fmt: skip
            theirs, own = np.load(made), ours(recipe, out.parent / "5", asked)
            pairs = enumerate(zip(own["prompts"], theirs["prompts"].tolist(), strict=True))
            # Its step for prompts without a state changes neither underscores nor spaces.
            tidied = recipe.model.discrete_state_input
            other = [pair for n, pair in pairs if pair[0] != pair[1] and (tidied or n % 3 != 1)]
            apart = {
                name: float(np.abs(own[name] - theirs[name]).max()) for name in ("normalized", "recorded")
            }
            print(
                f"{kind}: {len(other)} of {len(own['prompts'])} prompts differ {other[:1]}; actions {apart}"
            )
            failed += bool(other) or not max(apart.values()) <= TOLERANCE
            golden |= {f"{kind}_{name}": theirs[name] for name in theirs.files}
    if options.golden is not None:
        np.savez_compressed(options.golden, **golden)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
