"""Counts the operations of a training step's matrix products, as XLA leaves them in the compiled program.

A multiply-add counts two. A product of tokens and a kernel is computed once in the forward pass. Where a
gradient passes, it is computed again if its block is recomputed and something needs its result, and the
gradient of its tokens is computed. The gradient of its kernel is computed if the kernel is trained. So the
program does not compute:

- of the last layer of the language model, more than keys and values: the action head reads nothing else;
- again, the last product of a block, whose result no gradient needs: the second feed-forward kernel of the
  vision tower and of the language model. (In the action expert the gradient of the residual gate needs it.)
- again, a layer that stands in no loop, such as the last of the language model and its expert: XLA finds that
  its products are there already;
- the gradient of what is given: images, noisy actions, the time.

It does compute what the mathematics would not ask for: logits of the prefix for the actions' keys, which are
masked, and so, where the action expert alone is trained, the gradient of the language model's tokens.

What is no matrix product is left out. benchmarks/operations.py and tests/test_plan_operations.py compare this
with the products in XLA's optimized programs. XLA's own cost analysis cannot be compared with: it counts a
loop's body once, and nothing of a product that it hands to cuBLAS.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

from harness.artifacts import Levers
from harness.recipe.parameters import GEMMA, VISION, group_of, is_kernel, is_trained, parameter_shapes
from harness.recipe.schema import Model, Recipe, Trained

Part = Literal["vision", "language", "expert", "projections"]


class Tokens(NamedTuple):
    """Of one sample: images, patches of each, tokens of the prefix (patches and prompt), actions."""

    images: int
    patches: int
    prefix: int
    actions: int

    @property
    def all(self) -> int:
        return self.prefix + self.actions


class Passes(NamedTuple):
    """What is trained (None: the forward pass alone), and whether blocks are recomputed."""

    trained: Trained | None
    recomputed: bool = False

    def gradient(self, part: Part) -> bool:
        """Whether a gradient passes the tokens of `part`."""
        return self.trained is not None and (part != "vision" or self.trained in ("full", "lora"))


def tokens_of(model: Model, cameras: int, prompt_tokens: int) -> Tokens:
    """The tokens of one sample of so many cameras."""
    patches = (model.image_size // VISION[model.vision].patch) ** 2
    return Tokens(cameras, patches, cameras * patches + prompt_tokens, model.action_horizon)


def flops_per_sample(recipe: Recipe, levers: Levers) -> float:
    """Operations of one sample, forward and backward, beside the update.

    Attention over a few samples at a time computes its logits once more. This is counted for any microbatch,
    although one that is a single chunk is spared it: 0.2 percent of the published step.
    """
    tokens = tokens_of(recipe.model, len(levers.cameras), levers.prompt_tokens)
    passes = Passes(recipe.train.trained, levers.remat == "block")
    return _counted(recipe.model, tokens, passes, levers.attention == "chunked")


def forward_flops(model: Model, tokens: Tokens) -> float:
    """Operations of one sample's loss alone, without any gradient."""
    return _counted(model, tokens, Passes(None), False)


def prefix_flops(model: Model, tokens: Tokens) -> float:
    """Operations of one sample's prefix before its actions are sampled: the vision tower, and every layer."""
    language = GEMMA[model.paligemma.variant]
    kernels = sum(
        2.0 * math.prod(shape) * _rows(path, tokens)
        for path, shape in parameter_shapes(model).items()
        if is_kernel(path, shape) and part_of(path) in ("vision", "language")
    )
    attention = 4.0 * tokens.prefix**2 * language.heads * language.head_dim * language.depth
    return kernels + attention + _vision_attention(model, tokens, Passes(None))


def part_of(path: str) -> Part:
    """The part of the network whose tokens the kernel at `path` multiplies."""
    group = group_of(path)
    if group == "adapters":
        return "expert" if "_1/" in path else "language"
    return group


@functools.cache
def _counted(model: Model, tokens: Tokens, passes: Passes, chunked: bool) -> float:
    kernels = sum(
        2.0 * _a_layer(path, shape, model) * _rows(path, tokens) * _times(path, shape, model, passes)
        for path, shape in parameter_shapes(model).items()
        if is_kernel(path, shape)
    )
    return kernels + _vision_attention(model, tokens, passes) + _attention(model, tokens, passes, chunked)


def _a_layer(path: str, shape: tuple[int, ...], model: Model) -> float:
    """Multiply-adds of one layer's product with one token."""
    size = math.prod(shape) / (shape[0] if _in_layers(path) else 1)
    # All heads share the bottleneck of the output's adapters: its second factor is summed over them before.
    shared = "attn_vec_einsum" in path and path.endswith("lora_b")
    return size / GEMMA[model.paligemma.variant].heads if shared else size


def _in_layers(path: str) -> bool:
    return "llm/layers/" in path or "encoderblock/" in path


def _rows(path: str, tokens: Tokens) -> int:
    """How many rows of a sample the kernel at `path` multiplies."""
    part = part_of(path)
    if path.startswith("time_mlp") or (part == "expert" and "Dense_0" in path):
        return 1  # the time's embedding, which the adaptive norms read as well
    if part == "vision":
        return tokens.images * tokens.patches
    return tokens.prefix if part == "language" else tokens.actions


def _times(path: str, shape: tuple[int, ...], model: Model, passes: Passes) -> int:
    """How often the product of one layer is computed, or its like for a gradient, summed over the layers."""
    part = part_of(path)
    # Kernels beside the layers, the patch embedding among them, are not recomputed.
    layers, looped = 1, 0
    if _in_layers(path):
        layers = looped = shape[0]
        if part != "vision":
            looped -= 1
        if part == "language" and "kv_einsum" not in path:
            layers -= 1
    again = _again(looped, passes) if _is_needed(path, part) else 0
    given = path.startswith(("action_in_proj", "time_mlp_in", "PaliGemma/img/embedding"))
    if not passes.gradient(part):
        again, given = 0, True
    learns = passes.trained is not None and is_trained(path, model, passes.trained)
    return layers * (1 + (not given) + learns) + again


def _again(looped: int, passes: Passes) -> int:
    """Layers that are recomputed. A loop of one layer is none to XLA."""
    return looped if passes.recomputed and looped > 1 else 0


def _is_needed(path: str, part: Part) -> bool:
    """Whether a gradient needs the result of the product, so that it is computed again."""
    if part == "vision":
        return "Dense_1" not in path
    return part != "language" or not path.endswith(("mlp/linear", "mlp/linear_lora_b"))


def _vision_attention(model: Model, tokens: Tokens, passes: Passes) -> float:
    """Two products forward, the same two again, and four backward, over the patches of each image."""
    size, each = VISION[model.vision], passes.gradient("vision")
    once = 4.0 * tokens.images * tokens.patches**2 * size.width
    return once * (size.depth * (3 if each else 1) + (_again(size.depth, passes) if each else 0))


def _attention(model: Model, tokens: Tokens, passes: Passes, chunked: bool) -> float:
    """The same of both experts' joint attention. In the last layer the actions alone ask."""
    size, each = GEMMA[model.paligemma.variant], passes.gradient("language")
    looped = size.depth - 1
    once, last = (
        4.0 * asking * tokens.all * size.heads * size.head_dim for asking in (tokens.all, tokens.actions)
    )
    if not each:
        return once * looped + last
    more = 0.5 if chunked else 0.0
    return once * (looped * (3 + more) + _again(looped, passes)) + last * (3 + more)
