"""π0.5: a flow-matching action expert, conditioned on images and prompt.

x_t = t·noise + (1 - t)·actions. The model predicts noise - actions, so t = 1 is noise, and sampling goes from
1 to 0.
Sources: π0.5, https://arxiv.org/abs/2504.16054; openpi src/openpi/models/pi0.py at commit 15a9616 for
numerics and names.

Axes: B batch, C cameras, P patches, T prompt tokens, A action horizon, E action dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from harness.model.attention import AttentionForm
from harness.model.condition import ByToken, Condition
from harness.model.gemma import Fetch, Gemma, KeyValues
from harness.model.remat import Remat
from harness.model.siglip import SigLIP
from harness.recipe.parameters import GEMMA, VISION
from harness.recipe.schema import CAMERAS, Model

Params = dict[str, jax.Array]


# velocity(x [B, A, E], time [B], actions that are given clean: bool [B, A] or None) → [B, A, E].
Velocity = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


class Observation(NamedTuple):
    """The policy's input. Leaving a camera out gives the same result as a mask that is False.

    Shapes: images float32 [B, S, S, 3] in [-1, 1]; image_masks bool [B]; tokens int32 [B, T]; token_mask bool
    [B, T].
    """

    images: dict[str, jax.Array]
    image_masks: dict[str, jax.Array]
    tokens: jax.Array
    token_mask: jax.Array


class Linear(nnx.Module):
    """x·kernel + bias, in float32 (the wider of both types)."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.astype(self.kernel.dtype) @ self.kernel + self.bias


class Pi05(nnx.Module):
    """The whole model.

    `remat` says what the backward pass keeps of each layer (`model.remat`). `fetch` gets one
    layer's parameters (a tree of arrays without the layer axis) just before they are used, and again when
    they are recomputed.
    """

    def __init__(
        self,
        model: Model,
        *,
        rngs: nnx.Rngs,
        remat: Remat = "block",
        attention: AttentionForm = "full",
        fetch: Fetch = lambda layer: layer,
    ) -> None:
        dtype = jnp.dtype(model.compute_dtype)
        language, expert = GEMMA[model.paligemma.variant], GEMMA[model.action_expert.variant]
        self.PaliGemma = nnx.Dict(
            llm=Gemma(
                (model.paligemma, model.action_expert),
                model.vocab_size,
                dtype=dtype,
                remat=remat,
                attention=attention,
                fetch=fetch,
                rngs=rngs,
            ),
            img=SigLIP(
                VISION[model.vision],
                model.image_size,
                language.width,
                dtype=dtype,
                remat=remat,
                fetch=fetch,
                rngs=rngs,
            ),
        )
        self.action_in_proj = Linear(model.action_dim, expert.width, rngs)
        self.time_mlp_in = Linear(expert.width, expert.width, rngs)
        self.time_mlp_out = Linear(expert.width, expert.width, rngs)
        self.action_out_proj = Linear(expert.width, model.action_dim, rngs)

    def loss(
        self,
        observation: Observation,
        actions: jax.Array,
        noise: jax.Array,
        time: jax.Array,
        delay: jax.Array | None = None,
    ) -> jax.Array:
        """mean over E of (predicted velocity - (noise - actions))², [B, A].

        Shapes: actions, noise [B, A, E]; time [B] in (0, 1].

        With `delay` int [B] the first so many actions of a chunk are given: they are clean, their time is 0,
        and their entries of the loss are 0.
        Source: https://arxiv.org/abs/2512.05964, where the time of clean actions is 1.
        """
        given = None if delay is None else _is_before(delay, actions.shape[1])
        t = time[:, None, None] if given is None else jnp.where(given, 0.0, time[:, None])[:, :, None]
        x_t = t * noise + (1 - t) * actions
        prefix, prefix_mask = self._embed_prefix(observation)
        mask = _attention_mask(prefix_mask, actions.shape[1])
        positions = _positions(prefix_mask, actions.shape[1])
        velocity = self._velocity(x_t, time, positions, mask, prefix=prefix, given=given)
        each = jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)
        return each if given is None else jnp.where(given, 0.0, each)

    def sample_actions(self, observation: Observation, noise: jax.Array, steps: int = 10) -> jax.Array:
        """Actions [B, A, E] by `steps` Euler steps from `noise`; the prefix is computed once and cached."""
        velocity = self.velocity_of(observation, noise.shape[1])
        dt = -1.0 / steps

        def euler(i: jax.Array, x: jax.Array) -> jax.Array:
            time = jnp.full(x.shape[:1], 1.0 + i * dt)
            return x + dt * velocity(x, time, None)

        return jax.lax.fori_loop(0, steps, euler, noise)

    def velocity_of(self, observation: Observation, horizon: int) -> Velocity:
        """The velocity of chunks of `horizon` actions under one observation, whose prefix is computed once.

        Actions that are given clean are tokens of time 0, as in `loss`. Their own velocity means nothing.
        """
        prefix, prefix_mask = self._embed_prefix(observation)
        p = prefix_mask.shape[1]
        mask, positions = _attention_mask(prefix_mask, horizon), _positions(prefix_mask, horizon)
        cache = self.PaliGemma["llm"].prefix(prefix, positions[:, :p], mask[:, :p, :p])
        return lambda x, time, given: self._velocity(
            x, time, positions[:, p:], mask[:, p:], cache=cache, given=given
        )

    def _velocity(
        self,
        x_t: jax.Array,
        time: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        prefix: jax.Array | None = None,
        cache: KeyValues | None = None,
        given: jax.Array | None = None,
    ) -> jax.Array:
        condition: Condition = self._embed_time(time)
        if given is not None:
            condition = ByToken(condition, self._embed_time(jnp.zeros(1, time.dtype)), given)
        x = self.action_in_proj(x_t)
        out = self.PaliGemma["llm"].actions(
            prefix, x, positions=positions, mask=mask, condition=condition, cache=cache
        )
        return self.action_out_proj(out)

    def _embed_prefix(self, observation: Observation) -> tuple[jax.Array, jax.Array]:
        """(prefix tokens [B, C·P + T, D], mask of the real ones).

        Image tokens come first, in CAMERAS' order, then the prompt.
        """
        tokens = [self.PaliGemma["llm"].embed(observation.tokens)]
        masks = [observation.token_mask]
        cameras = [camera for camera in CAMERAS if camera in observation.images]
        if cameras:
            # All cameras pass the vision tower together. A sample's own lie side by side, so that devices
            # that share the batch each work on the images of their own samples.
            images = jnp.stack([observation.images[camera] for camera in cameras], axis=1)  # [B, C, S, S, 3]
            b, c = images.shape[:2]
            x = self.PaliGemma["img"](images.reshape(b * c, *images.shape[2:]))
            tokens.insert(0, x.reshape(b, -1, x.shape[-1]))
            known = jnp.stack([observation.image_masks[camera] for camera in cameras], axis=1)
            masks.insert(0, jnp.repeat(known, x.shape[1], axis=1))
        return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)

    def _embed_time(self, time: jax.Array) -> jax.Array:
        """swish(W_out·swish(W_in·sincos(t))): the condition of the adaptive norms, float32 [B, D]."""
        x = time_embedding(time, self.time_mlp_in.kernel.shape[0])
        return jax.nn.swish(self.time_mlp_out(jax.nn.swish(self.time_mlp_in(x))))


def time_embedding(time: jax.Array, width: int) -> jax.Array:
    """[sin(2πt/p), cos(2πt/p)], with width/2 periods p spaced geometrically from 4e-3 to 4.

    Shapes: [B] → [B, width].
    """
    low, high = 4e-3, 4.0
    period = low * (high / low) ** jnp.linspace(0.0, 1.0, width // 2)
    angle = time[:, None] * (1.0 / period * 2 * jnp.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _attention_mask(prefix_mask: jax.Array, horizon: int) -> jax.Array:
    """The attention mask, bool [B, S, S].

    Prefix tokens see the prefix. Actions see the prefix and each other. Padding sees nothing and is not seen.
    """
    p = prefix_mask.shape[1]
    valid = _with_actions(prefix_mask, horizon)
    is_action = jnp.arange(p + horizon) >= p
    return valid[:, :, None] & valid[:, None, :] & (is_action[:, None] >= is_action[None, :])


def _positions(prefix_mask: jax.Array, horizon: int) -> jax.Array:
    """Consecutive positions of the real tokens, [B, S].

    Leaving out padding or an absent camera therefore shifts nothing.
    """
    return jnp.cumsum(_with_actions(prefix_mask, horizon), axis=1) - 1


def _is_before(delay: jax.Array, horizon: int) -> jax.Array:
    """Which actions of a chunk come before its delay [B], bool [B, A]."""
    return jnp.arange(horizon) < delay[:, None]


def _with_actions(prefix_mask: jax.Array, horizon: int) -> jax.Array:
    return jnp.concatenate([prefix_mask, jnp.ones((prefix_mask.shape[0], horizon), bool)], axis=1)


def graph_of(
    model: Model,
    *,
    remat: Remat = "block",
    attention: AttentionForm = "full",
    fetch: Fetch = lambda layer: layer,
) -> nnx.GraphDef[Pi05]:
    """The model's structure without its parameters. Nothing is allocated."""
    return nnx.split(
        nnx.eval_shape(lambda: Pi05(model, rngs=nnx.Rngs(0), remat=remat, attention=attention, fetch=fetch))
    )[0]


def bind(graph: nnx.GraphDef[Pi05], params: Params) -> Pi05:
    """The model with these parameters (path → array)."""
    return nnx.merge(
        graph,
        nnx.from_flat_state({tuple(path.split("/")): nnx.Param(value) for path, value in params.items()}),
    )


def initialize(model: Model, key: jax.Array) -> Params:
    """Fresh float32 parameters (path → array), initialized as upstream does.

    If it is jitted and only some parameters are used, XLA drops the computation of the rest.
    """
    _, state = nnx.split(Pi05(model, rngs=nnx.Rngs(key)))
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}
