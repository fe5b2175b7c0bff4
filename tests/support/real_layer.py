"""One layer of π0.5 at its real sizes, with seeded parameters and inputs, for exports to be compared on.

Of SigLIP, of the language model and of the action expert one layer each is kept, with what stands before and
behind the layers; the vocabulary is small. That is 0.16 of 3.35 billion parameters.

Axes: B batch, P patches, T prefix tokens, A action horizon, D width of the language model, E of the expert.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
from flax import nnx

from harness.model.pi05 import bind, graph_of
from harness.recipe.load import load_recipe
from harness.recipe.parameters import GEMMA, VISION, parameter_shapes
from harness.recipe.schema import Recipe
from tests.support.parity import leaf

# What is kept of each output: every so many tokens and channels, so that the golden file is small.
KEPT = {"vision": (32, 8), "prefix": (5, 8), "suffix": (1, 8)}
# Tokens of the prefix, and how many of them are real in each sample.
_TOKENS, _REAL = 40, (40, 29)
# A prime number.
_PERIOD = 1_000_003
# Neither scale, alpha / rank, is 1.
_ADAPTERS = (
    "model.paligemma.lora={rank: 16, alpha: 32.0}",
    "model.action_expert.lora={rank: 32, alpha: 16.0}",
)


@contextlib.contextmanager
def one_layer() -> Iterator[None]:
    """Inside of the block the real variants have one layer instead of 18 and 27; nothing else differs."""
    experts = {name: GEMMA[name]._replace(depth=1) for name in ("gemma_2b", "gemma_300m")}
    vision = {"So400m/14": VISION["So400m/14"]._replace(depth=1)}
    with mock.patch.dict(GEMMA, experts), mock.patch.dict(VISION, vision):
        yield


def recipe_of_kind(kind: str) -> Recipe:
    """The published recipe, "full" or "lora", with a small vocabulary and computed in float32."""
    more = _ADAPTERS if kind == "lora" else ()
    name = "pi05_libero_lora" if kind == "lora" else "pi05_libero"
    return load_recipe(name, ["model.vocab_size=512", "model.compute_dtype=float32", *more])


def seeded(recipe: Recipe) -> dict[str, np.ndarray]:
    """float32 parameters of the size that initializers give them, 1 / sqrt(2048), by a rule of their path.

    A leaf's numbers come again after _PERIOD of them. No row is as long, or a divisor of it, so no two rows
    are the same.
    """
    params = {}
    for path, shape in parameter_shapes(recipe.model).items():
        numbers = np.float32(0.02) * leaf("real layer", path, (min(math.prod(shape), _PERIOD),))
        value = np.resize(numbers, shape)
        params[path] = value + 1 if path.startswith("PaliGemma/img") and path.endswith("/scale") else value
    return params


def inputs() -> dict[str, np.ndarray]:
    """Two samples: an image each, tokens before the layer, the time's embedding, and who sees whom.

    Shapes: image float32 [B, S, S, 3]; prefix float32 [B, T, D]; suffix float32 [B, A, E]; condition float32
    [B, E]; mask bool [B, T + A, T + A]; positions int32 [B, T + A].
    """
    rng = np.random.RandomState(0)
    batch, horizon = len(_REAL), 10
    real = np.arange(_TOKENS)[None] < np.array(_REAL)[:, None]
    seen = np.concatenate([real, np.ones((batch, horizon), bool)], axis=1)
    is_action = np.arange(_TOKENS + horizon) >= _TOKENS
    given = {
        "image": np.tanh(rng.standard_normal((batch, 224, 224, 3))),
        "prefix": rng.standard_normal((batch, _TOKENS, GEMMA["gemma_2b"].width)),
        "suffix": rng.standard_normal((batch, horizon, GEMMA["gemma_300m"].width)),
        "condition": rng.standard_normal((batch, GEMMA["gemma_300m"].width)),
    }
    return {name: value.astype(np.float32) for name, value in given.items()} | {
        "mask": seen[:, :, None] & seen[:, None, :] & (is_action[:, None] >= is_action[None, :]),
        "positions": (np.cumsum(seen, axis=1) - 1).astype(np.int32),
    }


def outputs(
    recipe: Recipe, params: dict[str, np.ndarray], given: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What our layers make of `given`, adapters unmerged, each after the norm that follows the last layer.

    Shapes: vision [B, P, D], prefix [B, T, D], suffix [B, A, E].
    """
    graph = graph_of(recipe.model, remat="none")

    @jax.jit
    def run(params: dict[str, jax.Array], given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = bind(graph, params)
        gemma = model.PaliGemma["llm"]
        block, stacked = nnx.split(gemma.layers)
        layer = nnx.merge(block, jax.tree.map(lambda x: x[0], stacked))
        xs, condition = (given["prefix"], given["suffix"]), given["condition"]
        (prefix, suffix), _ = layer(xs, given["positions"], given["mask"], condition, None)
        return {
            "vision": model.PaliGemma["img"](given["image"]),
            "prefix": gemma.final_norm(prefix)[0],
            "suffix": gemma.final_norm_1(suffix, condition)[0],
        }

    return {name: np.asarray(value) for name, value in run(params, given).items()}


def real_tokens(name: str, value: np.ndarray) -> np.ndarray:
    """The output `name` with padding as zeros: what a padded token becomes is read by nobody."""
    if name != "prefix":
        return value
    return np.where(np.arange(_TOKENS)[None, :, None] < np.array(_REAL)[:, None, None], value, np.float32(0))


def kept(name: str, value: np.ndarray) -> np.ndarray:
    """The part of the output `name` that the golden file holds."""
    tokens, channels = KEPT[name]
    return real_tokens(name, value)[:, ::tokens, ::channels]
