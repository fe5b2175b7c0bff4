"""The training step: one batch in, the state moved on by one optimizer update, and what a person watches.

The global batch is cut into `accumulation_steps` microbatches, whose gradients are summed in one buffer in a fixed order.
All randomness is drawn for the whole batch before it is cut, so the cut changes nothing but the order of summation.

Axes: B global batch, M microbatch, K accumulation steps (B = K·M), A action horizon, E action dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harness.model.pi05 import Observation, Params, bind, graph_of
from harness.parameters import is_kernel
from harness.recipe import Recipe
from harness.train.augment import augment
from harness.train.optimizer import learning_rate, optimizer
from harness.train.state import TrainState

Batch = dict[str, Any]
Noise = dict[str, jax.Array]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_step(recipe: Recipe, *, accumulation_steps: int = 1, remat: bool = True) -> Step:
    """step(state, batch, key) → (state, metrics); jit it with the state donated.

    batch: images uint8 {camera: [B, S, S, 3]}, tokens int32 [B, T], token_mask bool [B, T], actions float32 [B, A, E]. A camera that
    is not there is computed as if masked, at no cost. metrics: loss, grad_norm (before clipping), param_norm (kernels, after
    the update), learning_rate.
    """
    graph = graph_of(recipe.model, remat=remat)

    def loss(trained: Params, frozen: Params, batch: Batch, noise: Noise) -> jax.Array:
        observation = observe(batch, noise["augment"] if recipe.data.augment else None)
        return bind(graph, trained | frozen).loss(observation, batch["actions"], noise["noise"], noise["time"]).mean()

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs = {name: batch[name] for name in ("images", "tokens", "token_mask", "actions")}
        noise = draw(jax.random.fold_in(key, state.step), inputs["actions"].shape)
        value, grads = _accumulate(jax.value_and_grad(loss), state, inputs, noise, accumulation_steps)
        return apply_gradients(recipe, state, value, grads)

    return step


def draw(key: jax.Array, shape: tuple[int, ...]) -> Noise:
    """All randomness of one step for actions of `shape` [B, A, E]: a key a sample, noise, and t ~ 0.999·Beta(1.5, 1) + 0.001.

    Source: openpi src/openpi/models/pi0.py `compute_loss`, commit 15a9616.
    """
    augment_key, noise_key, time_key = jax.random.split(key, 3)
    return {
        "augment": jax.random.split(augment_key, shape[0]),
        "noise": jax.random.normal(noise_key, shape),
        "time": jax.random.beta(time_key, 1.5, 1, shape[:1]) * 0.999 + 0.001,
    }


def apply_gradients(recipe: Recipe, state: TrainState, loss: jax.Array, grads: Params) -> tuple[TrainState, dict[str, jax.Array]]:
    """One clipped AdamW update and one update of the average: ema ← decay·ema + (1 - decay)·parameters."""
    updates, opt_state = optimizer(recipe.train.optimizer).update(grads, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    decay = recipe.train.ema_decay
    ema = None if state.ema is None or decay is None else jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, trained)
    moved = TrainState(state.step + 1, trained, state.frozen, opt_state, ema)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": kernel_norm(moved.params),
        "learning_rate": jnp.asarray(learning_rate(recipe.train.optimizer.schedule)(state.step), jnp.float32),
    }
    return moved, metrics


def kernel_norm(params: Params) -> jax.Array:
    """L2 norm of all kernels (see `is_kernel`): the fingerprint that tells which weights a run started from."""
    return optax.tree.norm([value.astype(jnp.float32) for path, value in params.items() if is_kernel(path, value.shape)])


def observe(batch: Batch, keys: jax.Array | None) -> Observation:
    """What the policy sees of a batch; `keys`, one a sample, draw the augmentation, None leaves the images as they are."""
    # Images travel as uint8, a quarter of the bytes; they become float here, on the device.
    images = {camera: image.astype(jnp.float32) / 255.0 * 2.0 - 1.0 for camera, image in batch["images"].items()}
    masks = {camera: jnp.ones(image.shape[0], bool) for camera, image in images.items()}
    return Observation(images if keys is None else augment(keys, images), masks, batch["tokens"], batch["token_mask"])


def _accumulate(value_and_grad: Any, state: TrainState, batch: Batch, noise: Noise, steps: int) -> tuple[jax.Array, Params]:
    """Mean loss and gradient over `steps` microbatches."""
    if steps == 1:
        return value_and_grad(state.trained, state.frozen, batch, noise)
    cut = jax.tree.map(lambda x: x.reshape(steps, x.shape[0] // steps, *x.shape[1:]), (batch, noise))  # [K, M, ...]

    def add(total: tuple[jax.Array, Params], one: tuple[Batch, Noise]) -> tuple[tuple[jax.Array, Params], None]:
        return jax.tree.map(jnp.add, total, value_and_grad(state.trained, state.frozen, *one)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trained))
    total, _ = jax.lax.scan(add, zero, cut)
    return jax.tree.map(lambda x: x / steps, total)
