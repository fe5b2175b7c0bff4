"""A recipe for tests that take seconds: the shipped smoke recipe, with images of 56 pixels."""

from __future__ import annotations

import numpy as np

from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe

LORA = [
    "train.trained=lora",
    *(f"model.{expert}.lora={{rank: 4, alpha: 4.0}}" for expert in ("paligemma", "action_expert")),
]


def tiny(*overrides: str) -> Recipe:
    return load_recipe("smoke", ["model.image_size=56", "data.augment=false", *overrides])


def random_batch(recipe: Recipe, batch: int = 4, tokens: int = 16, seed: int = 0) -> dict:
    """A batch as the loader makes it, of noise."""
    rng = np.random.default_rng(seed)
    model = recipe.model
    shape = (batch, model.image_size, model.image_size, 3)
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    return {
        "images": {camera: rng.integers(0, 256, shape, dtype=np.uint8) for camera in cameras},
        "tokens": rng.integers(0, model.vocab_size, (batch, tokens), dtype=np.int32),
        "token_mask": np.arange(tokens)[None] < rng.integers(4, tokens, (batch, 1)),
        "actions": rng.standard_normal((batch, model.action_horizon, model.action_dim)).astype(np.float32),
    }


def random_params(recipe: Recipe, seed: int = 0) -> dict:
    """Small random parameters, none of them zero, so that every one has a gradient worth comparing."""
    rng = np.random.default_rng(seed)
    return {
        path: (0.05 * rng.standard_normal(shape)).astype(np.float32)
        for path, shape in parameter_shapes(recipe.model).items()
    }
