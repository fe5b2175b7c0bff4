"""The lengths and cameras that the engine compiles, known from the recipe. No JAX."""

from __future__ import annotations

from harness.recipe.schema import CAMERAS, Model, Recipe

# Prompts are padded to the next of these lengths, or to the recipe's own if that is shorter.
_BUCKETS = (32, 64, 128)


def buckets_of(model: Model) -> tuple[int, ...]:
    """The prompt lengths that are compiled, ascending; the last is the recipe's."""
    return (*(length for length in _BUCKETS if length < model.prompt_tokens), model.prompt_tokens)


def cameras_of(recipe: Recipe) -> tuple[str, ...]:
    """The model's cameras that the recipe's data has, in the model's order."""
    had = {camera for part in recipe.parts() for camera, feature in part.data.cameras.items() if feature}
    return tuple(camera for camera in CAMERAS if camera in had)
