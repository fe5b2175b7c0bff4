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

from harness.model.attention import AttentionForm
from harness.model.pi05 import Observation, Params, bind, graph_of
from harness.model.remat import Remat
from harness.recipe.parameters import EMBEDDING, is_cast_before_use
from harness.recipe.schema import Recipe
from harness.train.accumulate import Inputs, accumulate, read_copies
from harness.train.augment import augment
from harness.train.delay import draw_delays, mean_loss, row_losses
from harness.train.host import look_up, on_host
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
    remat: Remat = "block",
    attention: AttentionForm = "full",
    compute_copy: bool = False,
    layout: Layout | None = None,
) -> Step:
    """step(state, batch, key) → (state, metrics). Jit it with the state donated.

    batch: images uint8 {camera: [B, S, S, 3]}, tokens int32 [B, T], token_mask bool [B, T], actions float32
    [B, A, E]. An absent camera is computed as if masked, at no cost. metrics: loss, grad_norm (before
    clipping), param_norm (kernels, after the update), learning_rate. Of a mixture the batch also has dataset
    int32 [B], and image_masks if some datasets lack a camera; the metrics those of `by_dataset`.

    `layout` gives the sharding of every array on several devices; without it there is one device. The other
    options are those of `Levers`. The types of the state's arrays say which of them lie in host memory.
    """
    layout = layout or Layout(jax.local_devices()[:1])
    graph = graph_of(
        recipe.model, remat=remat, attention=attention, fetch=lambda layer: layout.fetch(read_copies(layer))
    )

    datasets = recipe.data.datasets

    def loss(params: Params, inputs: Inputs) -> Any:
        observation = observe(inputs, inputs["augment"] if recipe.data.augment else None)
        each = bind(graph, layout.fetch_outside_layers(params)).loss(
            observation, inputs["actions"], inputs["noise"], inputs["time"], inputs.get("delay")
        )
        mean = mean_loss(each, inputs)
        return mean if datasets is None else (mean, row_losses(each, inputs))

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        names = ("images", "tokens", "token_mask", "actions", "image_masks")
        inputs = {name: batch[name] for name in names if name in batch}
        drawn = draw(jax.random.fold_in(key, state.step), inputs["actions"].shape, recipe.train.most_delay)
        inputs |= layout.constrain_rows(drawn)
        given, copies, embedded = _readable(recipe, state, inputs["tokens"], compute_copy, layout)
        value, grads, *of_rows = accumulate(
            loss,
            given,
            copies,
            embedded,
            state.frozen,
            inputs,
            accumulation_steps,
            layout,
            recipe.model.vocab_size,
            each_row=datasets is not None,
        )
        state, metrics = apply_gradients(recipe, state, value, grads, layout)
        if datasets is None:
            return state, metrics
        cut = layout.microbatches(batch["dataset"], accumulation_steps)
        return state, metrics | by_dataset(of_rows[0], cut, len(datasets))

    return step


def by_dataset(losses: jax.Array, datasets: jax.Array, count: int) -> dict[str, jax.Array]:
    """The sum of the losses of each dataset's rows, float32 [count], and their number, int32 [count].

    Shapes: losses and datasets [K, M].
    """
    own = datasets[..., None] == jnp.arange(count)  # [K, M, count]
    return {
        "dataset_loss": jnp.where(own, losses[..., None], 0.0).sum(axis=(0, 1)),
        "dataset_rows": own.sum(axis=(0, 1)),
    }


def _readable(
    recipe: Recipe, state: TrainState, tokens: jax.Array, compute_copy: bool, layout: Layout
) -> tuple[Params, Params, jax.Array | None]:
    """(float32 parameters, copies in the compute type, embeddings of the tokens [B, T, D]) for the model.

    All come from the trained parameters. A parameter in host memory is read as its copy in the state, with or
    without `compute_copy`.
    """
    dtype = jnp.dtype(recipe.model.compute_dtype)
    table = state.trained.get(EMBEDDING)
    given: Params = {}
    copies: Params = {}
    for path, x in state.trained.items():
        if path == EMBEDDING:
            continue
        if path in state.copies:
            (copies if is_cast_before_use(path) else given)[path] = state.copies[path]
        elif compute_copy and is_cast_before_use(path):
            copies[path] = x.astype(dtype)
        else:
            given[path] = x
    if table is None:
        return given, copies, None
    return given, copies, layout.constrain_rows(look_up(table, tokens) if on_host(table) else table[tokens])


def draw(key: jax.Array, shape: tuple[int, ...], most_delay: int = 0) -> Noise:
    """All randomness of one step for actions of `shape` [B, A, E].

    It is a key a sample, the noise, and t ~ 0.999·Beta(1.5, 1) + 0.001. With `most_delay` there are delays
    as well; the others stay as they are without.
    Source: openpi src/openpi/models/pi0.py `compute_loss`, commit 15a9616.
    """
    augment_key, noise_key, time_key = jax.random.split(key, 3)
    delays = draw_delays(key, shape[0], shape[1], most_delay) if most_delay else {}
    return delays | {
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
    told = batch.get("image_masks", {})
    masks = {camera: told.get(camera, jnp.ones(image.shape[0], bool)) for camera, image in images.items()}
    return Observation(
        images if keys is None else augment(keys, images), masks, batch["tokens"], batch["token_mask"]
    )
