"""Counts the operations of a training step's matrix products, as XLA leaves them in the compiled program.

A multiply-add counts two. A product of tokens and a kernel is computed once in the forward pass. Where a
gradient passes, it is computed again if its layer is recomputed, does not keep it and something needs its
result, and the gradient of its tokens is computed. The gradient of its kernel is computed if the kernel is
trained. So the program does not compute:

- of the last layer of the language model, more than keys and values: the action head reads nothing else;
- again, what the level of rematerialization keeps (`Levers.remat`). Of a product with adapters the sum is
  kept; what stands between the two factors is computed again, because the second factor's gradient needs it;
- again, the last product of a layer, whose result no gradient needs: the second feed-forward kernel of the
  vision tower and of the language model. (In the action expert the gradient of the residual gate needs it.)
- again, a layer that stands in no loop, such as the last of the language model and its expert: XLA finds that
  its products are there already;
- the gradient of what is given: images, noisy actions, the time; where the action expert alone is trained,
  also the tokens of the language model, of which only keys and values are then computed again.

Attention is two products forward. The language model's has a backward pass of its own (`model.attention`)
with five: the logits again, which are never kept, and four gradients. The prefix asks only its own keys, the
actions ask all; the number of keys is rounded up to a multiple of 8.

What is no matrix product is left out. benchmarks/operations.py and tests/test_plan_operations.py compare this
with the products in XLA's optimized programs. XLA's own cost analysis cannot be compared with: it counts a
loop's body once, and nothing of a product that it hands to cuBLAS.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

from harness.artifacts import Levers
from harness.artifacts.plan import Remat
from harness.recipe.parameters import GEMMA, VISION, group_of, is_kernel, is_trained, parameter_shapes
from harness.recipe.schema import Model, Recipe, Trained

Part = Literal["vision", "language", "expert", "projections"]
# Attention's keys are padded to a multiple of this: model.attention.
_ALIGNED = 8
# Kernels whose product a level keeps. Source: the names in harness.model.remat.
_MLP = ("/gating_einsum",)
_NAMES = (*_MLP, "/q_einsum", "/kv_einsum", "/query/", "/key/", "/value/", "/MlpBlock_0/Dense_0/")
_KEPT: dict[Remat, tuple[str, ...]] = {"block": (), "mlp": _MLP, "names": _NAMES, "none": ()}


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
    """What is trained (None: the forward pass alone), and what of a layer is kept for the backward pass."""

    trained: Trained | None
    remat: Remat = "none"

    def gradient(self, part: Part) -> bool:
        """Whether a gradient passes the tokens of `part`."""
        if part == "vision":
            return self.trained in ("full", "lora")
        return self.trained is not None and (part != "language" or self.trained != "action_expert")

    def again(self, looped: int) -> int:
        """Of so many layers in a loop, those that are recomputed. A loop of one layer is none to XLA."""
        return looped if self.trained is not None and self.remat != "none" and looped > 1 else 0


def tokens_of(model: Model, cameras: int, prompt_tokens: int) -> Tokens:
    """The tokens of one sample of so many cameras."""
    patches = (model.image_size // VISION[model.vision].patch) ** 2
    return Tokens(cameras, patches, cameras * patches + prompt_tokens, model.action_horizon)


def flops_per_sample(recipe: Recipe, levers: Levers) -> float:
    """Operations of one sample, forward and backward, beside the update.

    Attention over a few samples at a time computes its logits once more. This is counted for any microbatch,
    although one that is a single piece is spared it: 0.2 percent of the published step.
    """
    tokens = tokens_of(recipe.model, len(levers.cameras), levers.prompt_tokens)
    passes = Passes(recipe.train.trained, levers.remat)
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
    attention = (
        4.0 * tokens.prefix * _aligned(tokens.prefix) * language.heads * language.head_dim * language.depth
    )
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
    again = passes.again(looped) if _is_needed(path, part, passes) and not is_kept(path, passes.remat) else 0
    given = path.startswith(("action_in_proj", "time_mlp_in", "PaliGemma/img/embedding"))
    given = given or not passes.gradient(part)
    learns = passes.trained is not None and is_trained(path, model, passes.trained)
    return layers * (1 + (not given) + learns) + again


def is_kept(path: str, remat: Remat) -> bool:
    """Whether the product of the kernel at `path` is kept for the backward pass, and not computed again."""
    # The product with an adapter's first factor is no result of the layer.
    return _in_layers(path) and not path.endswith("lora_a") and any(name in path for name in _KEPT[remat])


def _is_needed(path: str, part: Part, passes: Passes) -> bool:
    """Whether a gradient needs the result of the product, so that it is computed again."""
    if part == "vision":
        return passes.gradient(part) and "Dense_1" not in path
    if part == "language" and not passes.gradient(part):
        return "kv_einsum" in path  # the gradient of the actions' queries needs the keys
    return part != "language" or not path.endswith(("mlp/linear", "mlp/linear_lora_b"))


def _aligned(keys: int) -> int:
    return -(-keys // _ALIGNED) * _ALIGNED


def _vision_attention(model: Model, tokens: Tokens, passes: Passes) -> float:
    """Two products forward and four backward over the patches of each image, and those that are repeated."""
    size = VISION[model.vision]
    product = 2.0 * tokens.images * tokens.patches**2 * size.width
    if not passes.gradient("vision"):
        return product * 2 * size.depth
    # The result is kept by "names"; the probabilities are not.
    repeated = 1 if passes.remat == "names" else 2
    return product * (size.depth * 6 + passes.again(size.depth) * repeated)


def _attention(model: Model, tokens: Tokens, passes: Passes, chunked: bool) -> float:
    """The same of the language model's and the expert's. In the last layer the actions alone ask."""
    size = GEMMA[model.paligemma.variant]
    looped = size.depth - 1
    prefix, actions = (
        2.0 * asking * _aligned(keys) * size.heads * size.head_dim
        for asking, keys in ((tokens.prefix, tokens.prefix), (tokens.actions, tokens.all))
    )
    # A layer's logits, of which its result and then the gradients are made, are computed once for both if
    # these stand in one loop. In pieces they do not.
    shared = 0 if chunked else 1
    repeated = 0 if passes.remat == "names" else 2 - shared

    def looped_times(learns: bool) -> int:
        return looped * (2 + 5 * learns) + (passes.again(looped) * repeated if learns else 0)

    # What the last layer's logits were in the forward pass, they are in the backward pass.
    learns = passes.gradient("expert")
    of_actions = looped_times(learns) + 2 + (5 - shared) * learns
    return prefix * looped_times(passes.gradient("language")) + actions * of_actions
