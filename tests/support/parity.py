"""Compares our model and step with a golden file made by openpi's own code. Prints the largest errors.

    python -m tests.support.parity tests/golden/pi05_tiny.npz

The golden file stores only results: parameters and inputs come from RandomState(first 4 bytes of sha256(salt
+ path)). Both kinds (`full`, `lora`) that the file holds are checked. `TOLERANCES` has the tolerances.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from harness.model.pi05 import Observation, Params, bind, graph_of
from harness.recipe.load import load_recipe
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import CAMERAS, Recipe
from harness.train import device
from harness.train.sharding import Layout
from harness.train.state import TrainState, state_from
from harness.train.update import apply_gradients, kernel_norm

TOLERANCES = {
    "loss": 1e-5,
    "masked camera": 1e-5,
    "absent camera": 1e-5,
    "sample_actions": 1e-4,
    "grad_l2": 1e-4,
    "train_history": 1e-4,
}
# Gradients that are zero in exact arithmetic (a key's bias; a norm whose output is not read) are noise in
# both programs.
NOISE_FLOOR = 1e-7


class Golden(NamedTuple):
    """A golden file and the sizes that it does not tell."""

    file: Path
    salt: str = ""
    horizon: int = 10
    vision: str = "Ti/14"
    rank: int = 4
    alpha: float = 4.0
    scale_feed_forward: bool = True


class Figure(NamedTuple):
    name: str
    error: float
    tolerance: float
    where: str = ""

    @property
    def passes(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def leaf(salt: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden files' rule for every array."""
    seed = int.from_bytes(hashlib.sha256((salt + path).encode()).digest()[:4], "little")
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def recipe_for(golden: Golden, kind: str) -> Recipe:
    """The tiny model of the golden file, with the optimizer of its training history."""
    lora = (
        f"{{rank: {golden.rank}, alpha: {golden.alpha}, scale_feed_forward:"
        f" {str(golden.scale_feed_forward).lower()}}}"
    )
    adapters = [f"model.{expert}.lora={lora}" for expert in ("paligemma", "action_expert")]
    overrides = [
        f"model.vision={golden.vision}",
        f"model.action_horizon={golden.horizon}",
        "model.prompt_tokens=16",
        f"train.trained={kind}",
        "train.ema_decay=0.9",
        "train.optimizer.schedule={warmup_steps: 2, peak: 1.0e-3, decay_steps: 10, end: 1.0e-4}",
    ]
    return load_recipe("smoke", overrides + (adapters if kind == "lora" else []))


def parameters(golden: Golden, recipe: Recipe) -> Params:
    """Parameters by the golden rule; frozen ones rounded to bfloat16."""
    params = {}
    for path, shape in parameter_shapes(recipe.model).items():
        value = 0.05 * leaf(golden.salt, path, shape)
        if path.startswith("PaliGemma/img") and path.endswith("/scale"):
            value += 1
        trained = is_trained(path, recipe.model, recipe.train.trained)
        params[path] = jnp.asarray(value, jnp.float32 if trained else jnp.bfloat16)
    return params


class Inputs(NamedTuple):
    observation: Observation
    actions: np.ndarray
    noise: np.ndarray
    time: np.ndarray


def inputs(golden: Golden, *, masked: float = -1.0, cameras: tuple[str, ...] = CAMERAS) -> Inputs:
    """The golden batch of two; the third camera is masked and holds `masked` in every pixel."""
    b, side, horizon = 2, 224, golden.horizon
    images = {name: np.tanh(leaf(golden.salt, f"input/{name}", (b, side, side, 3))) for name in CAMERAS[:2]}
    images[CAMERAS[2]] = np.full((b, side, side, 3), masked, np.float32)
    tokens = np.int32(np.abs(leaf(golden.salt, "input/tokens", (b, 16))) * 100) % 512
    observation = Observation(
        images={name: jnp.asarray(images[name]) for name in cameras},
        image_masks={name: jnp.full(b, name != CAMERAS[2]) for name in cameras},
        tokens=jnp.asarray(tokens),
        token_mask=jnp.arange(16)[None] < jnp.array([[9], [13]]),
    )
    actions, noise = (leaf(golden.salt, f"input/{name}", (b, horizon, 32)) for name in ("actions", "noise"))
    return Inputs(observation, actions, noise, np.array([0.25, 0.8125], np.float32))


def check(golden: Golden, kind: str) -> list[Figure]:
    """Every figure of one kind. Raises KeyError when the file lacks one."""
    stored = np.load(golden.file)
    recipe = recipe_for(golden, kind)
    shapes = {path: tuple(shape) for path, shape in json.loads(str(stored[f"{kind}/shapes"])).items()}
    if shapes != parameter_shapes(recipe.model):
        raise SystemExit(
            f"{kind}: the file's parameters are not this model's; give its --horizon, --vision, --rank"
        )
    trained = {path for path in shapes if is_trained(path, recipe.model, recipe.train.trained)}
    if trained != set(json.loads(str(stored[f"{kind}/trainable"]))):
        raise SystemExit(f"{kind}: the file trains other parameters than ours")
    ours = computed(golden._replace(file=Path()), kind, len(stored[f"{kind}/train_history"]))
    worst = max(
        (_gradient_error(got, float(stored[f"{kind}/grad_l2/{path}"])), path)
        for path, got in ours.gradients.items()
    )
    return [
        _relative(f"{kind} loss", "loss", ours.loss, stored[f"{kind}/loss"]),
        _relative(
            f"{kind} loss, masked camera changed",
            "masked camera",
            ours.changed,
            stored[f"{kind}/loss_masked_camera_changed"],
        ),
        _relative(
            f"{kind} loss, masked camera left out", "absent camera", ours.absent, stored[f"{kind}/loss"]
        ),
        Figure(
            f"{kind} sample_actions (absolute)",
            float(np.abs(ours.actions - stored[f"{kind}/sample_actions"]).max()),
            TOLERANCES["sample_actions"],
        ),
        Figure(f"{kind} grad_l2", worst[0], TOLERANCES["grad_l2"], worst[1]),
        _relative(f"{kind} train_history", "train_history", ours.history, stored[f"{kind}/train_history"]),
    ]


class Ours(NamedTuple):
    """What our model gives: losses [B], actions [B, H, D], gradient norms by path, the history [steps, 4]."""

    loss: np.ndarray
    changed: np.ndarray
    absent: np.ndarray
    actions: np.ndarray
    gradients: dict[str, float]
    history: np.ndarray


@functools.cache
def computed(golden: Golden, kind: str, steps: int) -> Ours:
    """What our model gives by the golden rule, whatever a file says. Asked again, it is the same answer."""
    recipe = recipe_for(golden, kind)
    params = parameters(golden, recipe)
    return Ours(*_forward(golden, recipe, params), *_training(golden, recipe, params, steps))


def _forward(golden: Golden, recipe: Recipe, params: Params) -> list[np.ndarray]:
    """The loss; with the masked camera changed; with it left out; the sampled actions."""
    graph, batch = graph_of(recipe.model), inputs(golden)
    loss = jax.jit(
        lambda params, observation: bind(graph, params).loss(
            observation, batch.actions, batch.noise, batch.time
        )
    )
    sample = jax.jit(lambda params, observation: bind(graph, params).sample_actions(observation, batch.noise))
    seen = (batch, inputs(golden, masked=0.5), inputs(golden, cameras=CAMERAS[:2]))
    return [
        *(np.asarray(loss(params, each.observation)) for each in seen),
        np.asarray(sample(params, batch.observation)),
    ]


def _training(
    golden: Golden, recipe: Recipe, params: Params, steps: int
) -> tuple[dict[str, float], np.ndarray]:
    """The norm of the gradient of each trained parameter at the start, and the rows of so many steps."""
    graph, batch = graph_of(recipe.model), inputs(golden)

    def mean_loss(trained: Params, frozen: Params) -> jax.Array:
        return (
            bind(graph, trained | frozen)
            .loss(batch.observation, batch.actions, batch.noise, batch.time)
            .mean()
        )

    layout = Layout(jax.local_devices()[:1])
    # Placed as a step leaves it: a state that lay elsewhere would be another program at the first step.
    begun = state_from(params, recipe)
    places = layout.of(begun)
    begun = jax.device_put(begun, places)

    @functools.partial(jax.jit, out_shardings=(places, places.frozen, None, None))
    def step(state: TrainState, frozen_ema: Params) -> tuple[TrainState, Params, Params, jax.Array]:
        value, grads = jax.value_and_grad(mean_loss)(state.trained, state.frozen)
        moved, metrics = apply_gradients(recipe, state, value, grads)
        # The stored norm is of upstream's average of *all* parameters, and upstream averages the frozen ones
        # in bfloat16, where 0.9·x + 0.1·x is not x. Ours keeps no average of what does not move; to compare
        # the norm, do here as upstream does.
        frozen_ema = jax.tree.map(lambda old, new: 0.9 * old + (1 - 0.9) * new, frozen_ema, moved.frozen)
        ema_norm = optax.tree.norm((moved.ema, frozen_ema)).astype(jnp.float32)
        return (
            moved,
            frozen_ema,
            grads,
            jnp.stack([metrics["loss"], metrics["grad_norm"], kernel_norm(moved.params), ema_norm]),
        )

    state, frozen_ema = begun, begun.frozen
    _, _, grads, _ = step(state, frozen_ema)
    norms = {path: float(jnp.linalg.norm(x.astype(jnp.float32).ravel())) for path, x in grads.items()}
    rows = []
    for _ in range(steps):
        state, frozen_ema, _, row = step(state, frozen_ema)
        rows.append(np.asarray(row))
    return norms, np.stack(rows)


def _relative(name: str, key: str, got: Any, want: Any) -> Figure:
    return Figure(name, float(np.max(np.abs(np.asarray(got) / np.asarray(want) - 1))), TOLERANCES[key])


def _gradient_error(got: float, want: float) -> float:
    return abs(got - want) / max(want, NOISE_FLOOR) if max(got, want) > NOISE_FLOOR else 0.0


def kinds(file: Path) -> list[str]:
    """Which of `full` and `lora` the file holds."""
    return [kind for kind in ("full", "lora") if f"{kind}/loss" in np.load(file).files]


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    device.start()
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.parity",
        description="Compare our π0.5 with a golden file made by openpi's code.",
    )
    parser.add_argument("file", type=Path, help="golden file (npz)")
    parser.add_argument("--salt", default="", help="prepended to each path before hashing (default: none)")
    parser.add_argument("--horizon", type=int, default=10, help="action horizon (default: 10)")
    parser.add_argument(
        "--vision", choices=("mu/14", "Ti/14"), default="Ti/14", help="vision tower (default: Ti/14)"
    )
    parser.add_argument("--rank", type=int, default=4, help="rank of the adapters (default: 4)")
    parser.add_argument("--alpha", type=float, help="alpha of the adapters (default: the rank)")
    options = vars(parser.parse_args())
    if not options["file"].is_file():
        raise SystemExit(f"there is no file {options['file']}")
    golden = Golden(
        **options | {"alpha": float(options["rank"] if options["alpha"] is None else options["alpha"])}
    )
    passes = [report(golden, kind) for kind in kinds(golden.file)]
    if not passes:
        print(f"FAIL {golden.file} holds neither full nor lora figures")
    sys.exit(0 if passes and all(passes) else 1)


def report(golden: Golden, kind: str) -> bool:
    """Prints the figures of one kind; whether all pass.

    When alpha is not the rank, openpi's own feed-forward (which forgets alpha / rank) and ours are two
    models. A file that ours does not reproduce is then held against openpi's, and which of the two made it is
    said.
    """
    figures = check(golden, kind)
    if kind == "lora" and golden.alpha != golden.rank and not all(figure.passes for figure in figures):
        unscaled = check(golden._replace(scale_feed_forward=False), kind)
        if all(figure.passes for figure in unscaled):
            print(
                "     lora: the file was made without alpha / rank in the feed-forward (as openpi has it):"
                " scale_feed_forward=false"
            )
            figures = unscaled
    for figure in figures:
        verdict = "ok  " if figure.passes else "FAIL"
        print(
            f"{verdict} {figure.name:40} largest error {figure.error:.1e}   tolerance {figure.tolerance:.0e} "
            f"  {figure.where}"
        )
    return all(figure.passes for figure in figures)


if __name__ == "__main__":
    main()
