"""Shapes and types of everything that the program takes, known from the recipe before a weight is read.

Axes as in `harness.serve.program`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import ShapeDtypeStruct as Struct

from harness.recipe.parameters import (
    EMBEDDING,
    GEMMA,
    VISION,
    GemmaSize,
    is_cast_before_use,
    parameter_shapes,
)
from harness.recipe.schema import Model, Recipe
from harness.serve.lengths import Kernels, cameras_of
from harness.serve.program import Arrays, Call, Expert, Language, Layer, Norms, Sizes, padded
from harness.serve.rtc_program import After
from harness.serve.vision import Scaled, VisionArrays, VisionLayer
from harness.train.state import parameter_dtype

LAYERS = "PaliGemma/llm/layers/"
BLOCKS = "PaliGemma/img/Transformer/encoderblock/"


def sizes_of(model: Model, kernels: Kernels = "none") -> Sizes:
    """What is fixed when the program is compiled."""
    vision = VISION[model.vision]
    return Sizes(
        patch=vision.patch,
        vision_heads=vision.heads,
        head_dim=GEMMA[model.paligemma.variant].head_dim,
        horizon=model.action_horizon,
        dtype=jnp.dtype(model.compute_dtype),
        kernels=kernels,
    )


def dtype_of(path: str, recipe: Recipe) -> jnp.dtype:
    """The type in which the program keeps the parameter at `path`.

    What the model casts before it is used is kept in the compute type, and so is the table, as upstream
    serves it. The rest is as training has it: norms, patches, positions and projections, 0.1 % of the bytes.
    """
    compute = jnp.dtype(recipe.model.compute_dtype)
    trained = jnp.dtype(parameter_dtype(path, recipe))
    if is_cast_before_use(path) or "/head/" in path or path.startswith("PaliGemma/llm/final_norm_1/"):
        return compute
    if path == EMBEDDING:
        return min(compute, trained, key=lambda dtype: dtype.itemsize)
    # Patches and their positions are added up in float32.
    return trained if path.endswith("/scale") else jnp.dtype(jnp.float32)


def abstract_arrays(recipe: Recipe, steps: int) -> Arrays:
    """Shapes and types of the program's arrays for `steps` Euler steps."""
    model = recipe.model
    language, expert = GEMMA[model.paligemma.variant], GEMMA[model.action_expert.variant]
    shapes = parameter_shapes(model)

    def of(path: str, *shape: int) -> Struct:
        return Struct(shape, dtype_of(path, recipe))

    def scale(path: str) -> Struct:
        return of(path, language.width)

    before, between = (f"{LAYERS}{name}/scale" for name in ("pre_attention_norm", "pre_ffw_norm"))
    compute = jnp.dtype(model.compute_dtype)
    norms = Norms(scale(before), scale(between))
    return Arrays(
        _vision(recipe),
        Language(
            of(EMBEDDING, *shapes[EMBEDDING]),
            [_layer(language, compute)] * (language.depth - 1),
            [norms] * (language.depth - 1),
            Struct((language.width, 2 * language.head_dim), compute),
            scale(before),
        ),
        Expert(
            [_layer(expert, compute)] * expert.depth,
            Struct((steps, 2 * expert.depth + 1, 3, expert.width), compute),
            of("action_in_proj/kernel", *shapes["action_in_proj/kernel"]),
            of("action_in_proj/bias", *shapes["action_in_proj/bias"]),
            of("action_out_proj/kernel", *shapes["action_out_proj/kernel"]),
            of("action_out_proj/bias", *shapes["action_out_proj/bias"]),
        ),
    )


def _layer(size: GemmaSize, dtype: jnp.dtype) -> Layer:
    if size.kv_heads != 1:
        raise NotImplementedError("the program is written for heads that share one key and one value")
    d, h, f = size.width, size.head_dim, size.mlp_dim
    shapes = ((d, (size.heads + 2) * h), (size.heads * h, d), (d, 2 * f), (f, d))
    return Layer(*(Struct(shape, dtype) for shape in shapes))


def _vision(recipe: Recipe) -> VisionArrays:
    size, out = VISION[recipe.model.vision], GEMMA[recipe.model.paligemma.variant].width
    d, f, patches = size.width, size.mlp_dim, (recipe.model.image_size // size.patch) ** 2
    compute = jnp.dtype(recipe.model.compute_dtype)

    def norm(path: str) -> Scaled:
        return Scaled(
            Struct((d,), dtype_of(f"{path}/scale", recipe)), Struct((d,), dtype_of(f"{path}/bias", recipe))
        )

    def dense(*shape: int) -> tuple[Struct, Struct]:
        return Struct(shape, compute), Struct(shape[-1:], compute)

    first, second = norm(f"{BLOCKS}LayerNorm_0"), norm(f"{BLOCKS}LayerNorm_1")
    layer = VisionLayer(first, *dense(d, 3 * d), *dense(d, d), second, *dense(d, f), *dense(f, d))
    wide = jnp.dtype(jnp.float32)
    return VisionArrays(
        Struct((size.patch**2 * 3, d), wide),
        Struct((d,), wide),
        Struct((patches, d), wide),
        [layer] * size.depth,
        norm("PaliGemma/img/Transformer/encoder_norm"),
        *dense(d, out),
    )


def abstract_call(recipe: Recipe, batch: int, bucket: int) -> Call:
    """Shapes and types of a call of `batch` rows whose prompts are padded to `bucket`."""
    model, cameras = recipe.model, len(cameras_of(recipe))
    return Call(
        Struct((batch, cameras, model.image_size, model.image_size, 3), jnp.dtype(jnp.uint8)),
        Struct((batch, cameras), jnp.dtype(jnp.bool_)),
        Struct((batch, padded(bucket)), jnp.dtype(jnp.int32)),
        Struct((batch, padded(bucket)), jnp.dtype(jnp.bool_)),
        Struct((batch, padded(model.action_horizon), model.action_dim), jnp.dtype(jnp.float32)),
    )


def abstract_after(recipe: Recipe, batch: int) -> After:
    """Shapes and types of what is left of the previous chunks of `batch` rows."""
    model = recipe.model
    rows, wide = padded(model.action_horizon), jnp.dtype(jnp.float32)
    return After(Struct((batch, rows, model.action_dim), wide), Struct((batch, rows), wide))


def abstract_clean(recipe: Recipe) -> Struct:
    """Shape and type of the modulations of actions that are given clean."""
    expert = GEMMA[recipe.model.action_expert.variant]
    return Struct((2 * expert.depth + 1, 3, expert.width), jnp.dtype(recipe.model.compute_dtype))
