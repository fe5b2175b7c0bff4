"""The lengths, cameras and kernels that the engine compiles, known from the recipe. No JAX."""

from __future__ import annotations

from typing import Literal

from harness.recipe.parameters import GEMMA
from harness.recipe.schema import CAMERAS, Model, Recipe

# Prompts are padded to the next of these lengths, or to the recipe's own if that is shorter. The prompts of
# LIBERO's 130 tasks have 5 to 21 tokens by Gemma's tokenizer, with begin and newline.
_BUCKETS = (24, 48, 96)


def buckets_of(model: Model) -> tuple[int, ...]:
    """The prompt lengths that are compiled, ascending; the last is the recipe's."""
    return (*(length for length in _BUCKETS if length < model.prompt_tokens), model.prompt_tokens)


def cameras_of(recipe: Recipe) -> tuple[str, ...]:
    """The model's cameras that the recipe's data has, in the model's order."""
    had = {camera for part in recipe.parts() for camera, feature in part.data.cameras.items() if feature}
    return tuple(camera for camera in CAMERAS if camera in had)


# How the action rows attend: in XLA's operations, by our kernels, or by these in an interpreter on a CPU.
Kernels = Literal["none", "compiled", "interpreted"]
# Triton takes no product of fewer rows or channels than 16. The kernels multiply the heads of two action
# rows, and half a head at a time.
_LEAST_HEADS, _LEAST_HEAD_DIM = 8, 32


def kernels_for(model: Model, platform: str) -> Kernels:
    """Whether the kernels of `harness.serve.kernels` serve this model on that platform ("cuda" or "cpu").

    They are written for bfloat16: in float32 a product by Triton would round to TF32.
    """
    expert = GEMMA[model.action_expert.variant]
    large = expert.heads >= _LEAST_HEADS and expert.head_dim >= _LEAST_HEAD_DIM
    powers = not expert.heads & (expert.heads - 1) and not expert.head_dim & (expert.head_dim - 1)
    there = platform == "cuda" and model.compute_dtype == "bfloat16"
    return "compiled" if there and large and powers else "none"


def attention_named(kernels: Kernels) -> Literal["kernels", "xla"]:
    """What serving.json says of it."""
    return "xla" if kernels == "none" else "kernels"
