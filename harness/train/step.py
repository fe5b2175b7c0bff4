"""The training step: one batch in, one optimizer update of the state, and the metrics.

The global batch is cut into `accumulation_steps` microbatches. Their gradients are summed in one buffer, in a
fixed order. All randomness is drawn for the whole batch before it is cut, so the cut changes only the order
of summation.

Axes: B global batch, M microbatch, K accumulation steps (B = K·M), A action horizon, E action dim, T prompt
tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from harness.model.gemma import AttentionForm
from harness.model.pi05 import Observation, Params, bind, graph_of
from harness.recipe.parameters import EMBEDDING, is_cast_before_use
from harness.recipe.schema import Recipe
from harness.train.accumulate import Inputs, accumulate, read_copies
from harness.train.augment import augment
from harness.train.host import fetch, look_up, on_host, to_device
from harness.train.sharding import Layout
from harness.train.state import TrainState
from harness.train.update import apply_gradients

Batch = dict[str, Any]
Noise = dict[str, jax.Array]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    recipe: Recipe,
    *,
    accumulation_steps: int = 1,
    remat: bool = True,
    attention: AttentionForm = "full",
    compute_copy: bool = False,
    layout: Layout | None = None,
) -> Step:
    """step(state, batch, key) → (state, metrics). Jit it with the state donated.

    batch: images uint8 {camera: [B, S, S, 3]}, tokens int32 [B, T], token_mask bool [B, T], actions float32
    [B, A, E]. An absent camera is computed as if masked, at no cost. metrics: loss, grad_norm (before
    clipping), param_norm (kernels, after the update), learning_rate.

    `layout` gives the sharding of every array on several devices; without it there is one device. The other
    options are those of `Levers`. The types of the state's arrays say which of them lie in host memory.
    """
    layout = layout or Layout(jax.local_devices()[:1])
    graph = graph_of(
        recipe.model, remat=remat, attention=attention, fetch=lambda layer: layout.fetch(read_copies(layer))
    )

    def loss(params: Params, inputs: Inputs) -> jax.Array:
        observation = observe(inputs, inputs["augment"] if recipe.data.augment else None)
        return (
            bind(graph, layout.fetch_outside_layers(params))
            .loss(observation, inputs["actions"], inputs["noise"], inputs["time"])
            .mean()
        )

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs = {name: batch[name] for name in ("images", "tokens", "token_mask", "actions")}
        inputs |= layout.constrain_rows(draw(jax.random.fold_in(key, state.step), inputs["actions"].shape))
        given, copies, embedded = _readable(recipe, state.trained, inputs["tokens"], compute_copy, layout)
        value, grads = accumulate(
            loss,
            given,
            copies,
            embedded,
            state.frozen,
            inputs,
            accumulation_steps,
            layout,
            recipe.model.vocab_size,
        )
        return apply_gradients(recipe, state, value, grads, layout)

    return step


def _readable(
    recipe: Recipe, trained: Params, tokens: jax.Array, compute_copy: bool, layout: Layout
) -> tuple[Params, Params, jax.Array | None]:
    """(float32 parameters, copies in the compute type, embeddings of the tokens [B, T, D]) for the model.

    All come from the trained parameters. A parameter in host memory is read as its copy if the model would
    cast it before use, with or without `compute_copy`.
    """
    dtype = jnp.dtype(recipe.model.compute_dtype)
    table = trained.get(EMBEDDING)
    others = {path: x for path, x in trained.items() if path != EMBEDDING}
    copied = {
        path: x for path, x in others.items() if is_cast_before_use(path) and (compute_copy or on_host(x))
    }
    copies = {
        path: fetch(x, dtype, layout.cuttable(path, x.shape)) if on_host(x) else x.astype(dtype)
        for path, x in copied.items()
    }
    given = {path: to_device(x) for path, x in others.items() if path not in copied}
    if table is None:
        return given, copies, None
    return given, copies, layout.constrain_rows(look_up(table, tokens) if on_host(table) else table[tokens])


def draw(key: jax.Array, shape: tuple[int, ...]) -> Noise:
    """All randomness of one step for actions of `shape` [B, A, E].

    It is a key a sample, the noise, and t ~ 0.999·Beta(1.5, 1) + 0.001.
    Source: openpi src/openpi/models/pi0.py `compute_loss`, commit 15a9616.
    """
    augment_key, noise_key, time_key = jax.random.split(key, 3)
    return {
        "augment": jax.random.split(augment_key, shape[0]),
        "noise": jax.random.normal(noise_key, shape),
        "time": jax.random.beta(time_key, 1.5, 1, shape[:1]) * 0.999 + 0.001,
    }


def observe(batch: Batch, keys: jax.Array | None) -> Observation:
    """The policy's observation of a batch.

    `keys`, one a sample, draw the augmentation. With None the images stay as they are.
    """
    # Images travel as uint8, a quarter of the bytes. They become float here, on the device.
    images = {
        camera: image.astype(jnp.float32) / 255.0 * 2.0 - 1.0 for camera, image in batch["images"].items()
    }
    masks = {camera: jnp.ones(image.shape[0], bool) for camera, image in images.items()}
    return Observation(
        images if keys is None else augment(keys, images), masks, batch["tokens"], batch["token_mask"]
    )
