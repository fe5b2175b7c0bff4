"""What the approximate levers do to training, on the tiny model: loss and parameters with each of them beside
the run without.

    python -m benchmarks.approximate_levers [--steps 30] [--only NAME ...]

The smoke recipe (a π0.5 of 0.54 M parameters, images of 56 pixels, batches of 2, no augmentation, average off
unless it is the lever) learns the sample dataset from the same random parameters, with the same batches and
noise. The result, with what the figures mean, is benchmarks/approximate_levers.md; with --only it is printed
and not written. About a minute a row on two cores, most of it compilation.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each program runs for seconds: LLVM's optimization costs more than it saves.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.dynamic_codes import PUBLISHED, published_updates
from harness.data.dataset import describe
from harness.data.loader import Loader
from harness.data.stats import compute
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe
from harness.train import update
from harness.train.optimizer import adamw
from harness.train.state import TrainState, fresh_state, state_from
from harness.train.step import make_step

FILE = Path(__file__).with_suffix(".md")
COMMON = ["model.image_size=56", "data.augment=false", "train.global_batch=2"]
OFF, LORA = (
    ["train.ema_decay=null"],
    [f"model.{expert}.lora={{rank: 4, alpha: 4.0}}" for expert in ("paligemma", "action_expert")],
)
FROZEN = [*OFF, *LORA, "train.trained=lora_frozen_vision"]
EMA = ["train.ema_decay=0.9"]
RATE = "train.optimizer.schedule.peak=3.0000003e-3"

Params = dict[str, np.ndarray[Any, Any]]


class Lever(NamedTuple):
    """Recipe keys of the run without, and those that the lever adds; `noise` disturbs the moments of the
    float32 optimizer instead.
    """

    base: list[str]
    adds: list[str] = []
    noise: float = 0.0


LEVERS = {
    "train.optimizer.moments=int8": Lever(OFF, ["train.optimizer.moments=int8"]),
    "train.optimizer.moments=bfloat16": Lever(OFF, ["train.optimizer.moments=bfloat16"]),
    "train.frozen=int8": Lever(FROZEN, ["train.frozen=int8"]),
    "train.frozen=int4": Lever(FROZEN, ["train.frozen=int4"]),
    "train.ema_every_steps=8": Lever(EMA, ["train.ema_every_steps=8"]),
    "train.ema_decay=null": Lever(EMA, ["train.ema_decay=null"]),
    "(float32, learning rate · (1 + 1e-7))": Lever(OFF, [RATE]),
    "(float32, moments · (1 + 0.1 % of noise))": Lever(OFF, noise=1e-3),
    "(float32, moments · (1 + 1 % of noise))": Lever(OFF, noise=1e-2),
}


class Run(NamedTuple):
    """`moments`: the first moment after each step, of an optimizer that keeps it in float32."""

    losses: np.ndarray[Any, Any]
    first: Params
    last: Params
    moments: list[Params]


def train(recipe: Recipe, steps: int, noise: float = 0.0) -> Run:
    dataset = describe(recipe)
    loader = Loader(
        recipe,
        dataset,
        compute(recipe, dataset),
        batch_size=recipe.train.global_batch,
        seed=recipe.train.seed,
    )
    state = jax.jit(lambda: start(recipe))()
    first, losses, moments = deployed(state), [], []
    with (
        (
            mock.patch.object(update, "adamw", noisy(noise))
            if noise
            else mock.patch.object(update, "adamw", adamw)
        ),
        closing(loader.iterate(0)) as batches,
    ):
        step = jax.jit(make_step(recipe), donate_argnums=0)
        for _ in range(steps):
            batch = next(batches)
            state, metrics = step(
                state,
                {name: batch[name] for name in ("images", "tokens", "token_mask", "actions")},
                jax.random.key(1),
            )
            losses.append(float(metrics["loss"]))
            moments.append({path: np.asarray(x) for path, x in state.opt_state[1][0].mu.items()})
    return Run(np.array(losses), first, deployed(state), moments)


def noisy(share: float) -> Callable[..., optax.GradientTransformation]:
    """`adamw` whose moments are multiplied by 1 + share · N(0, 1), each by itself, after every step."""

    def disturbed(*settings: Any) -> optax.GradientTransformation:
        exact = adamw(*settings)

        def updated(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            updates, (adam, *others) = exact.update(grads, state, params)
            leaves, structure = jax.tree.flatten((adam.mu, adam.nu))
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), adam.count), len(leaves))
            mu, nu = structure.unflatten(
                [
                    x * (1 + share * jax.random.normal(key, x.shape))
                    for x, key in zip(leaves, keys, strict=True)
                ]
            )
            return updates, (adam._replace(mu=mu, nu=nu), *others)

        return optax.GradientTransformation(exact.init, updated)

    return disturbed


def start(recipe: Recipe) -> TrainState:
    """Fresh parameters; with adapters small random ones, since a fresh model's gates are zero, and frozen
    ones would hide the network behind them.
    """
    if recipe.train.trained == "full":
        return fresh_state(recipe, jax.random.key(0))
    shapes, rng = parameter_shapes(recipe.model), np.random.default_rng(0)
    return state_from(
        {path: jnp.asarray(0.05 * rng.standard_normal(shape), jnp.float32) for path, shape in shapes.items()},
        recipe,
    )


def deployed(state: TrainState) -> Params:
    """What was trained, as it is deployed: the average where there is one."""
    return {
        path: np.asarray(value) for path, value in (state.trained if state.ema is None else state.ema).items()
    }


def distance(one: Params, other: Params) -> float:
    return float(
        np.sqrt(sum(np.sum(np.square(value.astype(np.float64) - other[path])) for path, value in one.items()))
    )


def figures(exact: Run, changed: Run) -> tuple[float, float, float]:
    """(first loss, last loss, parameters), as the page says."""
    first = changed.losses[0] / exact.losses[0] - 1
    last = changed.losses[-10:].mean() / exact.losses[-10:].mean() - 1
    return float(first), float(last), distance(changed.last, exact.last) / distance(exact.last, exact.first)


def gradients_of(exact: Run, b1: float) -> list[Params]:
    """The clipped gradients that the optimizer of a run got, by its first moments: g = (m - b1·m_before) / (1
    - b1).
    """
    before = [{path: np.zeros_like(x) for path, x in exact.moments[0].items()}, *exact.moments[:-1]]
    return [
        {path: (m[path] - b1 * earlier[path]) / (1 - b1) for path in m}
        for m, earlier in zip(exact.moments, before, strict=True)
    ]


def updates_of(
    optimizer: optax.GradientTransformation, gradients: list[Params], params: Params
) -> list[Params]:
    """What an optimizer makes of these gradients, one after the other, at parameters that stay."""
    state, step, made = optimizer.init(params), jax.jit(optimizer.update), []
    for g in gradients:
        updates, state = step(g, state, params)
        made.append(jax.device_get(updates))
    return made


def update_error(made: list[Params], exact: list[Params]) -> float:
    """Root mean square over the steps of |u - u'| / |u|."""
    zero = {path: np.zeros_like(x) for path, x in exact[0].items()}
    return float(
        np.sqrt(
            np.mean(
                [
                    (distance(one, other) / distance(other, zero)) ** 2
                    for one, other in zip(made, exact, strict=True)
                ]
            )
        )
    )


def table(steps: int, names: list[str]) -> str:
    lines = ["| lever | update | first loss | last loss | parameters |", "| --- | --- | --- | --- | --- |"]
    runs: dict[tuple[Any, ...], Run] = {}

    def run(noise: float, *keys: str) -> Run:
        if (noise, *keys) not in runs:
            runs[noise, *keys] = train(load_recipe("smoke", [*COMMON, *keys]), steps, noise)
        return runs[noise, *keys]

    for name in names:
        lever = LEVERS[name]
        exact, changed = run(0.0, *lever.base), run(lever.noise, *lever.base, *lever.adds)
        told = ""
        if any("moments" in key for key in lever.adds) or lever.noise:
            told = f"{100 * error_of(exact, lever):.1f} %"
        first, last, apart = figures(exact, changed)
        lines.append(
            f"| {name} | {told} | {100 * first:+.2f} % | {100 * last:+.2f} % | {100 * apart:.1f} % |"
        )
        print(lines[-1], flush=True)
        if name == "train.optimizer.moments=int8":
            lines.append(f"| {PUBLISHED} | {100 * error_of(exact, None):.1f} % | | | |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def error_of(exact: Run, lever: Lever | None) -> float:
    """`update_error` of a lever on the gradients of the run without; None stands for the published codes of 8
    bits.
    """
    recipe = load_recipe("smoke", [*COMMON, *OFF]).train
    gradients = gradients_of(exact, recipe.optimizer.b1)
    right = updates_of(adamw(recipe.optimizer, recipe.seed), gradients, exact.first)
    if lever is None:
        return update_error(published_updates(recipe.optimizer, gradients, exact.first), right)
    changed = load_recipe("smoke", [*COMMON, *OFF, *lever.adds]).train
    return update_error(
        updates_of(noisy(lever.noise)(changed.optimizer, changed.seed), gradients, exact.first), right
    )


_HEAD = """\
# Approximate levers on the tiny model

Written by `python -m benchmarks.approximate_levers`: {steps} steps of the smoke recipe, each row against the same run without the lever.

- *update*: how far an update is off, |u - u'| / |u| (root mean square over the steps), when both optimizers get the gradients of the run without:
  the lever's own error.
- *first loss*: relative difference of the loss before anything was learned; not 0 only where frozen weights are quantized.
- *last loss*: relative difference of the mean loss over the last ten steps.
- *parameters*: |p - p'| / |p - p0| over what is trained (over what is deployed, for the average): how far apart the two runs end, in units of the way
  that was learned.

The rows in brackets are the scale to read these by. The tiny model at this learning rate forgets where it was going: noise of 1 % on the moments
of the float32 optimizer, without any bias, puts its parameters about half of the way apart, while the losses stay together. So *parameters* says little about
a lever that rounds; *update* and the losses do. A tiny model says nothing about success in LIBERO.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=list(LEVERS), default=[])
    arguments = parser.parse_args()
    text = table(arguments.steps, arguments.only or list(LEVERS))
    if not arguments.only:
        FILE.write_text(_HEAD.format(steps=arguments.steps) + text)


if __name__ == "__main__":
    main()
