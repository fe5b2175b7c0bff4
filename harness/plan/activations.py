"""Counts the bytes of one sample's activations: what passes over them beside products, and what is kept.

Both are counted from shapes. The numbers of passes are those in XLA's program of pi05_libero for an H200, 32
rows a microbatch. Each was counted kernel by kernel in the program of an older step, which moved 857 GB a
microbatch. Today's moves 707 GB, of which attention's logits and probabilities are 60 GB instead of 170. The
rest of the difference was taken from the norms, the turned axes and the vision tower's probabilities.

A level of rematerialization keeps results of a layer (`Levers.remat`) in a stack over the layers. Compiled
for the same step, "mlp" takes 17.2 GiB more than "block", and "names" 27.4 GiB: 0.92 and 0.96 of what is
counted here.
"""

from __future__ import annotations

import functools

from harness.artifacts import Levers
from harness.plan.operations import Passes, Tokens, tokens_of
from harness.recipe.parameters import GEMMA, VISION
from harness.recipe.schema import Model, Recipe

# Of the bytes that are counted as kept, those that the compiled program takes at least.
KEPT_SHARE = 0.9


def kept_bytes(recipe: Recipe, levers: Levers) -> int:
    """Bytes that a device keeps of a microbatch for the backward pass, beside the inputs of the layers."""
    model = recipe.model
    tokens = tokens_of(model, len(levers.cameras), levers.prompt_tokens)
    return levers.microbatch * _kept(model, tokens, Passes(recipe.train.trained, levers.remat))


def passed_bytes(model: Model, tokens: Tokens, passes: Passes) -> float:
    """Bytes that the kernels of one sample move which are no matrix products: norms, softmax, activations.

    Each layer is counted as so many passes over its arrays, forward. The backward pass costs as much, and so
    does what it computes again. (8.2 GB for a sample of the published recipe, with "block".) What is kept is
    not in it.
    """
    more = 1 if passes.remat == "none" else 2
    vision, language = _forward(model, tokens)
    return vision * (1 + more * passes.gradient("vision")) + language * (
        1 + more * passes.gradient("language")
    )


def _forward(model: Model, tokens: Tokens) -> tuple[float, float]:
    """The bytes of the forward pass in (the vision tower, the language model with its expert)."""
    vision, language = VISION[model.vision], GEMMA[model.paligemma.variant]
    seen = tokens.images * tokens.patches
    in_vision = 2.0 * seen * (2.3 * vision.mlp_dim + 7 * vision.width)
    in_vision += 8.2 * seen * tokens.patches * vision.heads
    in_language = 2.0 * tokens.prefix * (3 * language.mlp_dim + 6 * language.width)
    # Logits are float32 here, and masked.
    in_language += 14.0 * tokens.all**2 * language.heads
    return in_vision * vision.depth, in_language * (language.depth - 1)


@functools.cache
def _kept(model: Model, tokens: Tokens, passes: Passes) -> int:
    """Bytes of one sample. What no gradient needs is not kept."""
    wide, products = passes.remat != "block", passes.remat in ("names", "none")
    item = 2 if model.compute_dtype == "bfloat16" else 4
    values = 0
    for part, count in (("language", tokens.prefix), ("expert", tokens.actions)):
        size = GEMMA[(model.paligemma if part == "language" else model.action_expert).variant]
        learns = passes.gradient("language" if part == "language" else "expert")
        each = 2 * size.mlp_dim * (wide and learns)
        # Keys and values; queries, and the result of attention.
        each += 2 * size.kv_heads * size.head_dim * products
        each += 2 * size.heads * size.head_dim * (products and learns)
        values += (size.depth - 1) * count * each
    vision = VISION[model.vision]
    if products and passes.gradient("vision"):
        values += vision.depth * tokens.images * tokens.patches * (4 * vision.width + vision.mlp_dim)
    kept = item * values
    if passes.remat == "none":
        # All that the passes of the forward pass write: half of what they move.
        of_vision, of_language = _forward(model, tokens)
        kept += int(of_vision * passes.gradient("vision") + of_language * passes.gradient("language")) // 2
    return kept
