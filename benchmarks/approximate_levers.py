"""What the approximate levers do to training, on the tiny model: loss and parameters with each of them beside the run without.

    python -m benchmarks.approximate_levers [--steps 30] [--only NAME ...] [--markdown FILE]

The smoke recipe (a π0.5 of 0.54 M parameters, images of 56 pixels, batches of 2, no augmentation, average off unless it is the lever) learns the sample
dataset from the same random parameters, with the same batches and noise. Three figures for each lever, against the same run without it:
- first loss: relative difference of the loss before anything was learned; not 0 only where frozen weights are quantized;
- last loss: relative difference of the mean loss over the last ten steps;
- parameters: |p - p'| / |p - p_0| over what is trained (over what is deployed, for the average): how far apart the two runs end, in units of
  the way that was learned.
The last row is the scale to read these by: float32 throughout, with the learning rate changed by its last bit.
A tiny model says nothing about success in LIBERO; it says whether a lever disturbs learning more than rounding does.

Printed on two CPU cores, 30 steps (the two rows of the average were not run):

    | train.optimizer.moments=int8     | +0.00 % | -0.66 % | 63.2 % |
    | train.optimizer.moments=bfloat16 | +0.00 % | -0.22 % | 17.6 % |
    | train.frozen=int8                | -0.01 % | +0.00 % |  1.9 % |
    | train.frozen=int4                | +0.24 % | -0.06 % | 25.7 % |
    | (learning rate · (1 + 1e-7))     | +0.00 % | +0.00 % |  0.0 % |
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from harness.data.dataset import describe
from harness.data.loader import Loader
from harness.data.stats import compute
from harness.parameters import parameter_shapes
from harness.recipe import Recipe, load_recipe
from harness.train.state import TrainState, fresh_state, state_from
from harness.train.step import make_step

COMMON = ["model.image_size=56", "data.augment=false", "train.global_batch=2"]
OFF, LORA = ["train.ema_decay=null"], [f"model.{expert}.lora={{rank: 4, alpha: 4.0}}" for expert in ("paligemma", "action_expert")]
FROZEN = [*OFF, *LORA, "train.trained=lora_frozen_vision"]
EMA = ["train.ema_decay=0.9"]
RATE = "train.optimizer.schedule.peak=3.0000003e-3"


class Lever(NamedTuple):
    """Recipe keys of the run without, and those that the lever adds."""

    base: list[str]
    adds: list[str]


LEVERS = {
    "train.optimizer.moments=int8": Lever(OFF, ["train.optimizer.moments=int8"]),
    "train.optimizer.moments=bfloat16": Lever(OFF, ["train.optimizer.moments=bfloat16"]),
    "train.frozen=int8": Lever(FROZEN, ["train.frozen=int8"]),
    "train.frozen=int4": Lever(FROZEN, ["train.frozen=int4"]),
    "train.ema_every_steps=8": Lever(EMA, ["train.ema_every_steps=8"]),
    "train.ema_decay=null": Lever(EMA, ["train.ema_decay=null"]),
    "(learning rate · (1 + 1e-7))": Lever(OFF, [RATE]),
}


class Run(NamedTuple):
    losses: np.ndarray[Any, Any]
    first: dict[str, np.ndarray[Any, Any]]
    last: dict[str, np.ndarray[Any, Any]]


def train(recipe: Recipe, steps: int) -> Run:
    dataset = describe(recipe)
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=recipe.train.global_batch, seed=recipe.train.seed)
    state = jax.jit(lambda: start(recipe))()
    first, losses = deployed(state), []
    step = jax.jit(make_step(recipe), donate_argnums=0)
    with closing(loader.iterate(0)) as batches:
        for _ in range(steps):
            batch = next(batches)
            state, metrics = step(state, {name: batch[name] for name in ("images", "tokens", "token_mask", "actions")}, jax.random.key(1))
            losses.append(float(metrics["loss"]))
    return Run(np.array(losses), first, deployed(state))


def start(recipe: Recipe) -> TrainState:
    """Fresh parameters; with adapters small random ones, since a fresh model's gates are zero, and frozen ones would hide the network behind them."""
    if recipe.train.trained == "full":
        return fresh_state(recipe, jax.random.key(0))
    shapes, rng = parameter_shapes(recipe.model), np.random.default_rng(0)
    return state_from({path: jnp.asarray(0.05 * rng.standard_normal(shape), jnp.float32) for path, shape in shapes.items()}, recipe)


def deployed(state: TrainState) -> dict[str, np.ndarray[Any, Any]]:
    """What was trained, as it is deployed: the average where there is one."""
    return {path: np.asarray(value) for path, value in (state.trained if state.ema is None else state.ema).items()}


def distance(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(value.astype(np.float64) - other[path])) for path, value in one.items())))


def figures(exact: Run, changed: Run) -> tuple[float, float, float]:
    """(first loss, last loss, parameters), as in the module's text."""
    first = changed.losses[0] / exact.losses[0] - 1
    last = changed.losses[-10:].mean() / exact.losses[-10:].mean() - 1
    return float(first), float(last), distance(changed.last, exact.last) / distance(exact.last, exact.first)


def table(steps: int, names: list[str]) -> str:
    lines = [f"{steps} steps of the smoke recipe.", "", "| lever | first loss | last loss | parameters |", "| --- | --- | --- | --- |"]
    runs: dict[tuple[str, ...], Run] = {}
    for name in names:
        lever = LEVERS[name]
        keys = [tuple(lever.base), (*lever.base, *lever.adds)]
        for key in keys:
            if key not in runs:
                runs[key] = train(load_recipe("smoke", [*COMMON, *key]), steps)
        first, last, apart = figures(*(runs[key] for key in keys))
        lines.append(f"| {name} | {100 * first:+.2f} % | {100 * last:+.2f} % | {100 * apart:.1f} % |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    text = table(arguments.steps, arguments.only)
    if arguments.markdown:
        arguments.markdown.write_text("# Approximate levers on the tiny model\n\nWritten by `python -m benchmarks.approximate_levers`.\n\n" + text)


if __name__ == "__main__":
    main()
